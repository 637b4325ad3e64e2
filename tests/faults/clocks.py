"""Nodes whose wall clock can jump: libfaketime, never the machine's own clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mailraft.cluster.child import Child

# A jump is seen after at most so long.
SEEN_S = 1


def faketime_library() -> Path | None:
    """That for programs with threads; None: it is not installed."""
    return next(iter(sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))), None)


class JumpingChild(Child):
    """As LocalCluster starts it, with a wall clock that `jump` sets off by so much."""

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path) -> None:
        super().__init__(name, arguments, log_path)
        self._offset = log_path.with_name(f"{name}.offset")
        self.jump(0)
        faked = (
            "env",
            f"LD_PRELOAD={faketime_library()}",
            f"FAKETIME_TIMESTAMP_FILE={self._offset}",
            f"FAKETIME_CACHE_DURATION={SEEN_S}",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            # Its repair of waits on that clock is for old C libraries; with it waits spin.
            "FAKETIME_FORCE_MONOTONIC_FIX=0",
        )
        self._command = (*faked, *self._command)

    def jump(self, offset_s: int) -> None:
        """From now on the clock is so far off, in seconds."""
        fresh = self._offset.with_suffix(".new")
        fresh.write_text(f"{offset_s:+d}\n", "ascii")
        fresh.replace(self._offset)  # never read half written
