"""A node's folder: made so that it lasts, and only ever one node's."""

from __future__ import annotations

from pathlib import Path

from mailraft.node.engine import log_blocks
from mailraft.node.engine.errors import FileDamagedError, WrongClusterError, WrongNodeError
from mailraft.node.engine.records import Identity
from mailraft.node.engine.watermark import sync_path


def make_folder(path: Path) -> None:
    """Make it and what leads to it, so that a power cut takes none of it away again."""
    if not path.exists():
        make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_path(path.parent)


def check_manifest(database: Path) -> None:
    """Raises FileDamagedError where RocksDB would not see it: it takes a record whose length has
    changed for one that is half written, hence for the end, and forgets the tables that come
    behind it without a word.
    """
    try:
        name = (database / "CURRENT").read_text("ascii").strip()
        data = (database / name).read_bytes()
    except (OSError, ValueError):
        return  # a new folder, or RocksDB says what is wrong with it
    block = log_blocks.damaged_block(data)
    if block is not None:
        raise FileDamagedError(
            f"{database / name}: a record of it is damaged, in the block at {block}. Move the "
            "folder away and let the node be rebuilt from its peers"
        )


def check_identity(found: Identity, wanted: Identity, where: str) -> None:
    """Raises WrongClusterError, WrongNodeError."""
    if found.cluster_id != wanted.cluster_id:
        raise WrongClusterError(
            f"{where} belongs to cluster {found.cluster_id!r} (node {found.node}), not to "
            f"{wanted.cluster_id!r}. Point this node at its own folder, or at an empty one"
        )
    if found.node != wanted.node:
        raise WrongNodeError(
            f"{where} belongs to node {found.node} of this cluster, not to node {wanted.node}. "
            "Two nodes on one folder, or one folder under two numbers, would lose acknowledged "
            "mail: correct the node number or the folder"
        )
