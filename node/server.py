"""One storage node, put together: store, consensus, replicas, peer streams, services, one port."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import grpc
from prometheus_client import REGISTRY, CollectorRegistry

from mailraft.internal.v1 import (
    audit_service_pb2_grpc,
    backup_service_pb2_grpc,
    command_pb2,
    control_pb2_grpc,
    inspect_service_pb2_grpc,
    peer_service_pb2_grpc,
    recovery_service_pb2_grpc,
)
from mailraft.node import services
from mailraft.node.agreement import Digests
from mailraft.node.backup import BackupService
from mailraft.node.body_audit import AuditService
from mailraft.node.clocks import PeerClocks, hand_over_while_off
from mailraft.node.consensus.host import Host
from mailraft.node.consensus.messages import Event, Transfer
from mailraft.node.consensus.settings import Settings
from mailraft.node.control import ControlService
from mailraft.node.digest_exchange import DigestExchange
from mailraft.node.disk_metrics import DiskCollector
from mailraft.node.disk_space import DiskSpace, Reserve, hand_over_while_full
from mailraft.node.engine.errors import DiskError, FileDamagedError
from mailraft.node.engine.options import StoreOptions
from mailraft.node.engine.store import Store
from mailraft.node.healing import Healing
from mailraft.node.hosting import Hosting
from mailraft.node.hot import HotMeter
from mailraft.node.housekeeper import Housekeeper
from mailraft.node.inspect import InspectService
from mailraft.node.interfaces import META_GROUP, ClusterView, GroupId, ReplicaId, StateMachine
from mailraft.node.metrics import NodeMetrics, ShardCollector
from mailraft.node.pace import LoopLag, Pace
from mailraft.node.peers import PEER_OPTIONS, PeerService, PeerStreams
from mailraft.node.position_exchange import PositionExchange
from mailraft.node.quorum_reads import Position
from mailraft.node.recovery import RecoveryService
from mailraft.node.runtime import Runtime, now_s
from mailraft.node.scrub import BYTES_PER_S
from mailraft.node.services.base import Service
from mailraft.node.shard import Replica
from mailraft.node.snapshot_receiver import SnapshotReceiver
from mailraft.node.snapshots import SnapshotSender
from mailraft.v1 import cluster_pb2, error_pb2
from mailraft.wire import errors, feature_levels
from mailraft.wire.admission import Admission
from mailraft.wire.audit import AuditLog
from mailraft.wire.callers import CallerLimits, Callers
from mailraft.wire.credentials import CONNECTIONS_MAX, AnyCredentials, add_port, server_options
from mailraft.wire.guard import Guard
from mailraft.wire.observed import Observe
from mailraft.wire.rpc_metrics import RpcMetrics
from mailraft.wire.slots import slot_of
from mailraft.wire.slow_log import SlowLog

log = logging.getLogger(__name__)


MAP_WAIT_S = 15.0
# A flush that is under way for so long is no reason to be sent calls.
FLUSH_HUNG_S = 2.0
# What is open at once; past it OVERLOADED with a delay. A call may carry a batch of 256.
CALLS_MAX = 4_096
STREAMS_MAX = 4_096
# A node that stops gives others so long to take over what it leads; it takes milliseconds.
HAND_OVER_S = 1.0


class NodeMaps(ClusterView, services.Maps, Protocol):
    """What a node goes by, and what its services tell of it: the same map."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    data_dir: Path
    listen_address: str
    credentials: AnyCredentials
    store: StoreOptions = StoreOptions()  # noqa: RUF009  # immutable
    consensus: Settings = Settings()  # noqa: RUF009  # immutable
    reserve: Reserve = Reserve()  # noqa: RUF009  # immutable
    registry: CollectorRegistry = field(default_factory=lambda: REGISTRY)
    slow_call_ms: int = 0  # calls that take longer are logged; 0: none
    audit_file: Path | None = None  # None: among the log lines
    # Of the hash that stands for an account, as in the log lines of this process.
    account_key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    scrub_bytes_per_s: int = BYTES_PER_S  # 0: no scrub runs by itself
    connections_max: int = CONNECTIONS_MAX  # the next is closed
    caller_limits: CallerLimits = CallerLimits()  # noqa: RUF009  # immutable


class NodeServer:
    """A storage node in this process, on the running event loop."""

    def __init__(
        self,
        *,
        options: NodeOptions,
        maps: NodeMaps,
        meta: StateMachine | None = None,
        extra: Callable[[], Sequence[Service]] = tuple,
    ) -> None:
        self._options, self.cluster = options, maps
        self._named = -1, ""  # by the map of an epoch
        self._maps, self._meta_machine, self._extra = maps, meta, extra
        self._store: Store | None = None
        self._replicas: dict[GroupId, Replica] = {}
        self._clocks = PeerClocks(self.wall_ms, self.now_s)
        self._hosting: Hosting | None = None
        self._runtime: Runtime | None = None
        self._streams: PeerStreams | None = None
        self._server: grpc.aio.Server | None = None
        self._peer_service: PeerService | None = None
        self._stopping = asyncio.Event()
        self._snapshots: SnapshotSender | None = None
        self._digests: DigestExchange | None = None
        self._positions: PositionExchange | None = None
        self._sending: asyncio.Task[None] | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._lag = LoopLag()
        self._lagging: asyncio.Task[None] | None = None
        self._stepping_down: list[asyncio.Task[None]] = []
        self._space: DiskSpace | None = None
        self._host: Host | None = None
        self._hot = HotMeter(self._shard_of_account, self.now_s)
        self._loop = asyncio.get_running_loop()
        self._healing = Healing(options.data_dir, maps, self._give_up)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---- life ------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Open the store, join the cluster, serve; answers the address it listens at.

        Raises errors of the engine (another cluster's folder, a second process, lost writes) and
        OSError when the port is taken.
        """
        view, options = self.cluster, self._options
        self._store = self._healing.open(options.store)
        view.remember_level(self._store.feature_level)
        host = Host(view.node, seed=secrets.randbits(64), settings=options.consensus)
        self._host, space = host, DiskSpace(options.reserve, lambda: host.full_peers)
        space.look(self._store.disk_usage())
        self._space = space
        self._streams = PeerStreams(
            view, options.credentials, self._tell, self.wall_ms, lambda: space.full
        )
        metrics = NodeMetrics(options.registry)
        metrics.clock_skew.set_function(lambda: self._clocks.skew_ms() / 1000)
        self._runtime = Runtime(
            self._store, host, self._replicas, self._streams, options.consensus, metrics
        )
        self._hosting = hosting = Hosting(
            view,
            self._store,
            host,
            self._runtime,
            self._replicas,
            self._meta_machine,
            rebuilds=self._healing.rebuilds,
        )
        self._healing.host(hosting)
        self._snapshots = SnapshotSender(
            self._store,
            host,
            view,
            options.credentials,
            self._runtime.tell,
            Pace(self._lag.lately_ms),
        )
        self._runtime.send_snapshots_by(self._snapshots.want)
        options.registry.register(ShardCollector(host, self._replicas, self._snapshots.metrics))
        receiver = SnapshotReceiver(self._store, host, view, self._runtime)
        self._digests = DigestExchange(
            self._store, host, view, options.credentials, self._runtime, self._replicas, metrics
        )
        self._healing.prepare(
            host,
            self._runtime,
            hosting,
            self._replicas,
            self._digests,
            bytes_per_s=options.scrub_bytes_per_s,
            late_ms=self._lag.lately_ms,
            registry=options.registry,
        )
        server = self._server = await self._served(host, receiver)
        options.registry.register(
            DiskCollector(self._store, lambda: self._lag.worst_ms, lambda: space.full)
        )
        port = add_port(server, options.listen_address, options.credentials)
        await server.start()
        self._streams.refresh()
        self._begin_work(space)
        keeper = Housekeeper(
            self._to_keep, now_s=self.now_s, wall_ms=self.wall_ms, settle=self.settle
        )
        self._keeping = self._begin(keeper.run(), "housekeeper")
        return f"{options.listen_address.rpartition(':')[0]}:{port}"

    def _begin_work(self, space: DiskSpace) -> None:
        assert self._store is not None
        assert self._runtime is not None
        assert self._snapshots is not None
        assert self._digests is not None
        self._sending = self._begin(self._snapshots.run(), "snapshots")
        self._running = self._begin(self._runtime.run(), "runtime")
        self._comparing = self._begin(self._digests.run(), "digests")
        self._lagging = self._begin(self._lag.run(), "loop lag")
        self._following = self._begin(self._follow_map(), "map")
        while_off = hand_over_while_off(self._clocks, self.replicas, self._hand_over)
        while_full = hand_over_while_full(
            space, self._store.disk_usage, self._replicas.values, self._hand_over
        )
        self._stepping_down = [
            self._begin(while_off, "clock"),
            self._begin(while_full, "disk space"),
            self._begin(self._healing.scrub.run(), "scrub"),
            self._begin(self._healing.repairs.run(), "repairs"),
        ]

    def _give_up(self, error: FileDamagedError) -> None:
        """The store cannot be trusted: nothing of it is served any more. From any thread."""

        def end() -> None:
            for replica in self._replicas.values():
                replica.stop("the store of this node is damaged")
            if self._runtime is not None:
                self._runtime.halt()
            if not self.failed.done():
                self.failed.set_exception(error)

        self._loop.call_soon_threadsafe(end)

    async def _served(self, host: Host, receiver: SnapshotReceiver) -> grpc.aio.Server:
        """The server with every service on it, not started."""
        view, store, runtime, digests = self.cluster, self._store, self._runtime, self._digests
        assert store is not None
        assert runtime is not None
        assert digests is not None
        assert self._space is not None
        assert self._streams is not None
        observe, callers = self._observe(), Callers(self._options.caller_limits)
        server = grpc.aio.server(
            options=server_options(self._options.connections_max, PEER_OPTIONS),
            interceptors=[
                Guard(AuditLog(self._options.audit_file).record, callers, observe.refused),
                observe,
                Admission(CALLS_MAX, STREAMS_MAX),
            ],
        )
        said = version("mailraft")
        self._health = await services.register(
            server, self, self._maps, said, self._stopping, extra=self._extra()
        )
        positions = PositionExchange(store, host, view, self._options.credentials)
        self._positions = positions
        self._peer_service = PeerService(
            view, runtime, receiver, digests, positions, self._clocks, self._streams
        )
        peer_service_pb2_grpc.add_PeerServiceServicer_to_server(self._peer_service, server)
        self._control = ControlService(
            view,
            store,
            host,
            runtime,
            self._replicas,
            lag=self._lag,
            clocks=self._clocks,
            space=self._space,
            digests=digests,
            healing=self._healing,
            version=said,
            feature_level=feature_levels.LEVEL,
        )
        control_pb2_grpc.add_ControlServiceServicer_to_server(self._control, server)
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server(
            AuditService(store, self._healing, self._lag.lately_ms), server
        )
        backup = BackupService(store, self, self._replicas, self._lag.lately_ms)
        backup_service_pb2_grpc.add_BackupServiceServicer_to_server(backup, server)
        assert self._hosting is not None
        recovery = RecoveryService(view, host, runtime, self._hosting, self._replicas, said)
        recovery_service_pb2_grpc.add_RecoveryServiceServicer_to_server(recovery, server)
        self._add_inspection(server)
        return server

    def _add_inspection(self, server: grpc.aio.Server) -> None:
        options = self._options
        inspection = InspectService(
            self.cluster, self._hot, options.credentials, options.data_dir, options.account_key
        )
        inspect_service_pb2_grpc.add_InspectServiceServicer_to_server(inspection, server)

    def _observe(self) -> Observe:
        calls = RpcMetrics(self._options.registry)
        slow = SlowLog(self._options.slow_call_ms, "handler", self._worst_lag_ms)
        return Observe((calls.ended, slow.ended, self._hot.ended), (calls.stream_began,))

    def _shard_of_account(self, account_id: str) -> int:
        return self.cluster.shard_of_slot(slot_of(account_id))

    def _worst_lag_ms(self, within_s: float) -> float:
        return self._lag.worst_within_ms(within_s)

    def checks(self) -> Mapping[str, str]:
        """What must hold so that it can answer, and why it does not; empty: it does."""
        there = list(self._replicas.values())
        stopped = [str(each.group) for each in there if each.stopped]
        lost = [str(each.group) for each in there if not each.leadership.leader]
        hung_s = self._runtime.flush_waits_s if self._runtime is not None else 0.0
        return {
            "serving": "shuts down" if self._stopping.is_set() else "",
            "clock": "off that of its peers" if self._clocks.off else "",
            "disk": f"a flush takes {hung_s:.1f} s" if hung_s > FLUSH_HUNG_S else "",
            "replicas": f"stopped: of shard {', '.join(stopped)}" if stopped else "",
            "leaders": f"none known of shard {', '.join(lost)}" if lost else "",
        }

    async def stop(self, grace_s: float) -> None:
        """Hand over what is led here, finish calls under way (at most grace_s), flush, close."""
        for task in (self._keeping, self._following, self._lagging, *self._stepping_down):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self._end_calls(grace_s)
        if self._streams is not None:
            await self._streams.stop()
        for task in (self._sending, self._comparing):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._positions is not None:
            await self._positions.close()
        if self._runtime is not None:
            await self._runtime.stop()
            if self._running is not None:
                await asyncio.wait([self._running])
            self._runtime.close()
        if self._store is not None:
            # RocksDB closes no log that it could not write: that has been told, and is the reason.
            with suppress(*(DiskError,) if self.failed.done() else ()):
                self._store.close()

    async def _end_calls(self, grace_s: float) -> None:
        turning = self._runtime if not self.failed.done() else None
        if turning is not None:
            await turning.retire(deadline_s=now_s() + HAND_OVER_S)
        self._stopping.set()
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()  # NOT_SERVING from here on, for all services
        stopping = asyncio.ensure_future(self._server.stop(grace_s))
        if turning is not None:
            # What was proposed here is committed by the new leaders, which tell it through their
            # streams: those end last.
            await turning.settled(deadline_s=now_s() + grace_s)
        if self._peer_service is not None:
            self._peer_service.close()
        await stopping

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task without which the node is not whole: its error is the node's."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._on_end)
        return task

    def _on_end(self, running: asyncio.Task[None]) -> None:
        if running.cancelled() or self.failed.done():
            return
        error = running.exception()
        if error is not None:
            self.failed.set_exception(error)

    async def _follow_map(self) -> None:
        """Open and remove replicas, and streams to peers, as the map changes."""
        assert self._hosting is not None
        assert self._runtime is not None
        assert self._streams is not None
        adopted = 0  # at least once: the map may have changed since the start
        while True:
            await self._maps.wait_newer(adopted, MAP_WAIT_S)
            if self.cluster.epoch > adopted:
                adopted = self.cluster.epoch
                self._streams.refresh()
                await self._runtime.between_turns(self._hosting.adopt)

    def _tell(self, event: Event) -> None:
        assert self._runtime is not None
        self._runtime.tell(event)

    def _to_keep(self) -> Iterable[Replica]:
        """Upkeep stamps its commands as well."""
        return () if self._clocks.off else self.replicas()

    def _hand_over(self, group: GroupId) -> None:
        self._tell(Transfer(group, 0))

    # ---- what services ask (services.base.Shards) ------------------------------------------------

    @property
    def node_name(self) -> str:
        cluster = self.cluster
        if self._named[0] != cluster.epoch:
            names = (each.name for each in cluster.peers() if each.node == cluster.node)
            self._named = cluster.epoch, next(names)
        return self._named[1]

    def replica_for_account(self, account_id: str) -> Replica:
        shard = self.cluster.shard_of_slot(slot_of(account_id))
        replica = self._replicas.get(shard)
        if replica is None:
            raise errors.StaleRouteError(
                f"node {self.node_name} has no replica of shard {shard}",
                detail=error_pb2.StaleRoute(
                    epoch=self.cluster.epoch, shard=shard, cluster_id=self.cluster.cluster_id
                ),
            )
        return replica

    def replicas(self) -> Iterable[Replica]:
        """Of mail shards."""
        return [each for group, each in self._replicas.items() if group != META_GROUP]

    @property
    def meta(self) -> Replica | None:
        """The replica of the meta group here, if there is one."""
        return self._replicas.get(META_GROUP)

    def body(self, group: GroupId, index: int, ordinal: int) -> bytes | None:
        return self._healing.body(group, index, ordinal)

    def digests(self, group: GroupId) -> Digests:
        return self._digests.digests(group) if self._digests is not None else ()

    def differing(self, group: GroupId) -> Collection[ReplicaId]:
        return self._digests.differing(group) if self._digests is not None else ()

    def position(self, group: GroupId) -> Position | None:
        return self._positions.own(group) if self._positions is not None else None

    async def other_positions(
        self, own: Position, group: GroupId, count: int, *, deadline_s: float
    ) -> list[Position]:
        assert self._positions is not None
        return await self._positions.others(own, group, count, within_s=deadline_s - self.now_s())

    def policy(self) -> cluster_pb2.LevelPolicy:
        return self._maps.current().policy

    def now_s(self) -> float:
        return now_s()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def stamp_ms(self) -> int:
        return self._clocks.stamp_ms()

    def settle(self, command: command_pb2.Command) -> None:
        if self.cluster.feature_level >= feature_levels.UNDELETE_WINDOW:
            command.undelete_window_ms = self.policy().undelete_window_ms

    def admit(self, replica: Replica, command: command_pb2.Command) -> None:
        assert self._space is not None
        assert self._host is not None
        members = self._host.configuration(replica.group)
        self._space.admit(command, members.voters if members is not None else ())
