"""A node's folder: made so that it lasts, and only ever one node's."""

from __future__ import annotations

from pathlib import Path

from mailraft.node.engine.errors import WrongClusterError, WrongNodeError
from mailraft.node.engine.records import Identity
from mailraft.node.engine.watermark import sync_path


def make_folder(path: Path) -> None:
    """Make it and what leads to it, so that a power cut takes none of it away again."""
    if not path.exists():
        make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_path(path.parent)


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
