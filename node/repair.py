"""Fetches what was damaged here again from its peers, one replica at a time, and tells of it.

A replica that was set aside begins again empty, as one that knows that it has lived: it neither
votes nor is counted until it holds what its leader held when asked (consensus/amnesia.py, proven
for lost disks), and gets there by log or snapshot as any follower. What it had is kept until then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mailraft.node.consensus.host import Host
from mailraft.node.digest_exchange import DigestExchange
from mailraft.node.engine import quarantine
from mailraft.node.engine.errors import UnknownGroupError
from mailraft.node.engine.store import Store
from mailraft.node.hosting import Hosting
from mailraft.node.interfaces import ClusterView, GroupId
from mailraft.node.rebuild import has_others
from mailraft.node.runtime import Runtime
from mailraft.node.setting_aside import set_aside
from mailraft.node.shard import Replica

log = logging.getLogger(__name__)

LOOK_S = 1.0
# In a row: a replica that catches up may be there for a moment.
WHOLE_LOOKS = 3


@dataclass(slots=True)
class RepairFigures:
    """Of this process."""

    damaged: int = 0  # replicas that were set aside
    begun: int = 0
    completed: int = 0  # what was kept aside is whole again


class Repairs:
    """One a node. `run` until cancelled."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        host: Host,
        view: ClusterView,
        runtime: Runtime,
        hosting: Hosting,
        replicas: Mapping[GroupId, Replica],
        digests: DigestExchange,
    ) -> None:
        self._folder, self._store, self._host, self._view = folder, store, host, view
        self._runtime, self._hosting, self._replicas = runtime, hosting, replicas
        self._digests = digests
        self._whole = 0
        self._soon: dict[GroupId, str] = {}
        self.figures = RepairFigures()
        self.alone = ""  # what was found damaged last, and nobody else has
        # Why something is kept aside; empty: nothing is.
        self.kept = quarantine.kept(folder) or ""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.turn()

    async def damaged(self, group: GroupId, why: str) -> None:
        """A replica here is damaged: it serves nothing any more, and is fetched again."""
        own, configuration = self._replicas.get(group), dict(self._view.groups()).get(group)
        if own is None or configuration is None or self._store.is_set_aside(group):
            return
        if not has_others(configuration):
            self.alone = f"shard {group}: {why}"
            log.critical("shard %d is damaged, and nobody else has what is in it: %s", group, why)
            return
        self.figures.damaged += 1
        await set_aside(self._store, self._host, self._runtime, own, why)

    def soon(self, group: GroupId, why: str) -> None:
        """As `damaged`, for who cannot wait: found while it was read."""
        self._soon.setdefault(group, why)

    def waiting(self) -> list[GroupId]:
        """Groups whose replica here is set aside."""
        held = {group for group, _ in self._store.groups()}
        return [each for each in self._replicas if each in held and self._store.is_set_aside(each)]

    def fetching(self) -> list[GroupId]:
        """Groups whose replica here is fetched again, and does not vote yet."""
        return [group for group, _ in self._store.groups() if self._store.is_lost(group)]

    def is_fetching(self, group: GroupId) -> bool:
        """Whether the replica of this group is one of them."""
        try:
            return self._store.is_lost(group)
        except UnknownGroupError:
            return False

    async def turn(self) -> None:
        """Begin the next repair, or end the one that is under way."""
        while self._soon:
            await self.damaged(*self._soon.popitem())
        waiting = self.waiting()
        if self.kept:
            self._whole = 0 if self._is_missing_any() else self._whole + 1
            if self._whole >= WHOLE_LOOKS:
                await asyncio.to_thread(quarantine.drop, self._folder)
                log.warning("all is fetched again that was damaged here (%s)", self.kept)
                self.kept, self._whole = "", 0
                self.figures.completed += 1
        elif waiting:
            await self._begin(waiting[0])

    # ---- inside ----------------------------------------------------------------------------------

    def _is_missing_any(self) -> bool:
        """Whether a replica here does not know, or has not applied, what its leader had."""
        for group, _ in self._store.groups():
            replica, status = self._replicas.get(group), self._host.status(group)
            if self._store.is_set_aside(group):
                continue  # the next to be fetched, with a copy of its own
            if replica is None or status is None or self._store.is_lost(group):
                return True
            if not status.leader or replica.applied_index < status.commit_index:
                return True
        return False

    async def _begin(self, group: GroupId) -> None:
        configuration = dict(self._view.groups()).get(group)
        if configuration is None:
            return  # moved away: the map will have it removed
        well = self._digests.others_well(group) & set(configuration.voters)
        if len(well) <= len(configuration.voters) // 2:
            log.info("the replica of shard %d waits until a majority of the others is well", group)
            return
        why = f"shard {group}: its replica here was damaged"
        quarantine.keep_copy(self._folder, why, self._store.copy_to)
        self.kept = why
        self.figures.begun += 1
        await self._runtime.between_turns(lambda: self._hosting.begin_again(group))
        await self._runtime.flushed()
