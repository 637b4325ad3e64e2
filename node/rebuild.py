"""What becomes of a store with a damaged file: it is moved aside, and its node filled from peers.

RocksDB keeps rows of all groups in one file, and takes no writes any more once a compaction has met
a damaged one: so the store as a whole is given up, by ending the process. The next start begins on
an empty one, with replicas that know that they have lived (consensus/amnesia.py).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from mailraft.node.engine import quarantine
from mailraft.node.engine.errors import CorruptionError, FileDamagedError, LostWritesError
from mailraft.node.engine.options import StoreOptions
from mailraft.node.engine.store import DATABASE_FOLDER, WATERMARK_FILE, Store
from mailraft.node.interfaces import ClusterView, Configuration

log = logging.getLogger(__name__)

SCRUB_FILE = "scrub.json"
_STORE = (WATERMARK_FILE, SCRUB_FILE, DATABASE_FOLDER)


def open_store(folder: Path, view: ClusterView, options: StoreOptions) -> Store:
    """Open a node's folder; one whose store is damaged is set aside first, if peers have it too.

    Raises as Store.open; the errors of a damaged one where nobody else has what is in it, or
    another is set aside already.
    """
    shutil.rmtree(folder / quarantine.GONE_FOLDER, ignore_errors=True)
    reason, damage = quarantine.marked(folder), None
    if reason is None:
        try:
            return Store.open(folder, cluster_id=view.cluster_id, node=view.node, options=options)
        except (CorruptionError, LostWritesError) as error:
            reason, damage = str(error), error
    if not has_peers(view):
        raise damage or CorruptionError(f"{folder} is damaged, and nobody else has it: {reason}")
    quarantine.mark(folder, reason)
    quarantine.set_aside(folder, _STORE)
    log.critical(
        "the store of this node is damaged (%s): it is set aside in %s, and all replicas are "
        "fetched from their peers",
        reason,
        folder / quarantine.QUARANTINE_FOLDER,
    )
    return Store.open(folder, cluster_id=view.cluster_id, node=view.node, options=options)


def has_peers(view: ClusterView) -> bool:
    """Whether of every group here a majority of the voters is elsewhere: it has all that counts."""
    return all(has_others(configuration) for _, configuration in view.groups())


def has_others(configuration: Configuration) -> bool:
    """Whether without one of them the voters are a majority still."""
    voters = len(configuration.voters)
    return voters - 1 > voters // 2


class FileDamage:
    """What to do once a file of the store is found damaged, while the node runs."""

    def __init__(
        self, folder: Path, view: ClusterView, give_up: Callable[[FileDamagedError], None]
    ) -> None:
        """give_up: end this process; the next start finds the mark."""
        self._folder, self._view, self._give_up = folder, view, give_up
        self.reason = ""

    def found(self, error: FileDamagedError) -> None:
        """Raises nothing: the error that met the damage is on its way already."""
        if self.reason:
            return
        self.reason = str(error)
        if not has_peers(self._view):
            log.critical(
                "a file of this node's store is damaged, and nobody else has what is in it: %s. "
                "What can be read is served",
                error,
            )
            return
        log.critical("a file of this node's store is damaged: %s. The process ends", error)
        try:
            quarantine.mark(self._folder, str(error))
        except OSError:
            log.exception("the next start has to find the damage itself")
        self._give_up(error)
