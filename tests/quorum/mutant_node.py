"""Nodes that break a promise on purpose, so that the checkers can be seen to find it.

python mutant_node.py MUTANT mailraft.cluster.cli node --config ...
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mailraft.cluster.child import Child
from mailraft.node import quorum_reads
from mailraft.node.services import levels
from mailraft.node.shard import ReadPoint, Replica
from mailraft.v1 import common_pb2

CLI = "mailraft.cluster.cli"


def _served_as_local(level: common_pb2.Consistency.ValueType) -> None:
    """Reads of this level see whatever is applied, and say that it is fresh."""
    honest = Replica.read

    async def read(
        self: Replica, consistency: common_pb2.Consistency.ValueType, **args: Any
    ) -> ReadPoint:
        if consistency != level:
            return await honest(self, consistency, **args)
        point = await honest(self, common_pb2.CONSISTENCY_LOCAL, deadline_s=args["deadline_s"])
        return replace(point, consistency_met=level, age_ms=0)

    vars_of_class: Any = Replica
    vars_of_class.read = read


def linearizable_as_local() -> None:
    """LINEARIZABLE asks no quorum."""
    _served_as_local(common_pb2.CONSISTENCY_LINEARIZABLE)


def bounded_as_local() -> None:
    """BOUNDED does not look how old the data is."""
    _served_as_local(common_pb2.CONSISTENCY_BOUNDED)


def session_without_token() -> None:
    """SESSION does not look at min_state."""
    module: Any = levels
    module._reached = lambda *_: True


def always_complete() -> None:
    """QUORUM calls every answer complete."""
    module: Any = quorum_reads
    module.covers = lambda *_: True


def levels_met_at_once() -> None:
    """Writes above QUORUM wait for nobody."""

    async def met(*_: Any, **__: Any) -> common_pb2.LevelMet.ValueType:
        return common_pb2.LEVEL_MET_YES

    replica: Any = Replica
    replica.wait_on_disks = met
    replica.check_contact = lambda *_: None


MUTANTS: Mapping[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        linearizable_as_local,
        bounded_as_local,
        session_without_token,
        always_complete,
        levels_met_at_once,
    )
}


class MutantChild(Child):
    """As LocalCluster starts it, with one promise broken."""

    def __init__(self, mutant: str, name: str, arguments: Sequence[str], log_path: Path) -> None:
        super().__init__(name, arguments, log_path)
        start = (sys.executable, "-P", __file__, mutant, CLI)
        self._command = (*start, *arguments, "--with-parent")


def main() -> None:
    """Break the promise, then be the module."""
    mutant, module = sys.argv[1:3]
    MUTANTS[mutant]()
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
