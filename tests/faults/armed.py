"""Nodes with failpoints, and with logs that are compacted early: started through this file.

python armed.py FAILPOINTS LATER ENTRIES_MAX mailraft.cluster.cli node --config ...

LATER holds instead of FAILPOINTS from the first SIGUSR2 on: a fault that begins while it serves.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mailraft.cluster.child import Child
from mailraft.node import failpoints
from mailraft.node.consensus.compaction import CompactionLimits

CLI = "mailraft.cluster.cli"
# Instead of 20,000: a node that was away for a short time is caught up by a snapshot.
ENTRIES_MAX = 60


class ArmedChild(Child):
    """As LocalCluster starts it; `failpoints` holds from its next start on, `later` from `arm`."""

    later = ""
    entries_max = ENTRIES_MAX

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path) -> None:
        super().__init__(name, arguments, log_path)
        self.failpoints = ""
        self._plain = (CLI, *arguments, "--with-parent")

    def start(self) -> None:
        armed = (sys.executable, "-P", __file__, self.failpoints, self.later, str(self.entries_max))
        self._command = (*armed, *self._plain)
        super().start()

    def arm(self) -> None:
        """Make it fail as `later` says."""
        os.kill(self.pid, signal.SIGUSR2)


def main() -> None:
    """Arm, then be the module."""
    specification, later, entries_max, module = sys.argv[1:5]
    failpoints.arm(specification)
    signal.signal(signal.SIGUSR2, lambda *_: failpoints.arm(later))
    # What CompactionLimits() is from here on: the settings of consensus are made later.
    CompactionLimits.__init__.__defaults__ = (int(entries_max), 1 << 20, 1 << 20)
    sys.argv = [module, *sys.argv[5:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
