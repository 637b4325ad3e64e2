"""A node whose flushes only say that they synced: what row 2 has to catch.

python unsynced.py mailraft.cluster.cli node --config ...
"""

from __future__ import annotations

import runpy
import sys

from mailraft.node.engine.rocks import RocksBackend


def _flush(self: RocksBackend) -> int:  # noqa: ARG001  # as the method that it replaces
    return 0


def main() -> None:
    """Be the module. Its watermark does not move either: it would tell."""
    RocksBackend.flush = _flush  # type: ignore[method-assign]
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
