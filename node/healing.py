"""What finds damage on a node and has it repaired, put together: scrub, rebuild, repair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from mailraft.internal.v1 import audit_service_pb2
from mailraft.node.consensus.host import Host
from mailraft.node.digest_exchange import DigestExchange
from mailraft.node.engine import quarantine
from mailraft.node.engine.errors import CorruptionError, FileDamagedError
from mailraft.node.engine.options import StoreOptions
from mailraft.node.engine.store import Store
from mailraft.node.hosting import Hosting
from mailraft.node.interfaces import MAP_FILE, ClusterView, GroupId
from mailraft.node.rebuild import FileDamage, open_store
from mailraft.node.repair import Repairs
from mailraft.node.repair_metrics import RepairCollector
from mailraft.node.runtime import Runtime
from mailraft.node.scrub import Scrub
from mailraft.node.shard import Replica
from mailraft.wire import bodies


class Healing:
    """One a node. `open`, then `host`, then `prepare`; then its parts run."""

    scrub: Scrub
    repairs: Repairs
    _store: Store

    def __init__(
        self, folder: Path, view: ClusterView, give_up: Callable[[FileDamagedError], None]
    ) -> None:
        """give_up: serve nothing of the store any more, and end the process; from any thread."""
        self._folder, self._view = folder, view
        self._damage = FileDamage(folder, view, give_up)

    def open(self, options: StoreOptions) -> Store:
        """As rebuild.open_store."""
        self._store = open_store(self._folder, self._view, options)
        self._store.on_damage(self._damage.found)
        return self._store

    @property
    def rebuilds(self) -> bool:
        """Whether the store is new in place of one that was damaged."""
        return quarantine.kept(self._folder) is not None

    @property
    def damage(self) -> str:
        """What nobody else has; empty: none was found."""
        return self._damage.reason or self.repairs.alone

    def told(self) -> audit_service_pb2.ScrubResponse:
        """How scrub and repair stand."""
        state, repairs = self.scrub.state, self.repairs
        return audit_service_pb2.ScrubResponse(
            passes=state.passes,
            running=self.scrub.running,
            begun_ms=state.begun_ms,
            completed_ms=state.completed_ms,
            completed_bytes=state.completed_bytes,
            read_bytes=state.read_bytes,
            errors=state.errors,
            waiting=repairs.waiting(),
            fetching=repairs.fetching(),
            repairing=repairs.kept,
            damage=self.damage,
            repairs_completed=repairs.figures.completed,
        )

    def host(self, hosting: Hosting) -> None:
        """Have the replicas opened. Raises CorruptionError: not one of them, but what tells of them
        is damaged.
        """
        try:
            hosting.start()
        except CorruptionError as error:
            self._damage.found(FileDamagedError(str(error)))
            raise

    def prepare(
        self,
        host: Host,
        runtime: Runtime,
        hosting: Hosting,
        replicas: Mapping[GroupId, Replica],
        digests: DigestExchange,
        *,
        bytes_per_s: int,
        late_ms: Callable[[], float],
        registry: CollectorRegistry,
    ) -> None:
        """bytes_per_s, late_ms: as of Scrub."""
        self.repairs = Repairs(
            self._folder, self._store, host, self._view, runtime, hosting, replicas, digests
        )
        self.scrub = Scrub(
            self._folder,
            self._store,
            bytes_per_s=bytes_per_s,
            late_ms=late_ms,
            file_damaged=self._damage.found,
            replica_damaged=self.repairs.damaged,
            stopped=lambda: [group for group, each in replicas.items() if each.stopped],
            written_again={self._folder / MAP_FILE: self._view.adopted},
        )
        registry.register(RepairCollector(self.scrub, self.repairs))

    def body(self, group: GroupId, index: int, ordinal: int) -> bytes | None:
        """As Store.body. One that is damaged is none, and its replica is repaired."""
        packed = self._store.body(group, index, ordinal)
        try:
            if packed is not None:
                bodies.check(packed)
        except bodies.BodyCorruptError as error:
            self.repairs.soon(group, f"body {index}-{ordinal} is damaged: {error}")
            return None
        return packed
