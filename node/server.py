"""One storage node, put together: store, consensus, replicas, peer streams, services, one port."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import REGISTRY, CollectorRegistry

from mailraft.internal.v1 import peer_service_pb2_grpc
from mailraft.node import services
from mailraft.node.consensus.host import Host
from mailraft.node.consensus.messages import Event
from mailraft.node.consensus.settings import Settings
from mailraft.node.engine.errors import CorruptionError
from mailraft.node.engine.options import StoreOptions
from mailraft.node.engine.store import Store
from mailraft.node.housekeeper import Housekeeper
from mailraft.node.interfaces import ClusterView, GroupId, LogCorruptError, node_of
from mailraft.node.mailstore.machine import MailStateMachine
from mailraft.node.metrics import NodeMetrics, ShardCollector
from mailraft.node.peers import PEER_OPTIONS, PeerService, PeerStreams
from mailraft.node.runtime import Runtime, now_s
from mailraft.node.shard import Replica
from mailraft.node.snapshot_receiver import SnapshotReceiver
from mailraft.node.snapshots import SnapshotSender
from mailraft.v1 import error_pb2
from mailraft.wire import errors
from mailraft.wire.credentials import SERVER_OPTIONS, AnyCredentials, add_port
from mailraft.wire.slots import slot_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeOptions:
    data_dir: Path
    listen_address: str
    credentials: AnyCredentials
    store: StoreOptions = StoreOptions()  # noqa: RUF009  # immutable
    consensus: Settings = Settings()  # noqa: RUF009  # immutable
    registry: CollectorRegistry = field(default_factory=lambda: REGISTRY)


class NodeServer:
    """A storage node in this process, on the running event loop."""

    def __init__(
        self,
        *,
        options: NodeOptions,
        view: ClusterView,
        maps: services.Maps,
        extra_services: Sequence[Callable[[grpc.aio.Server], None]] = (),
    ) -> None:
        self._options, self.cluster = options, view
        self._maps, self._extra_services = maps, extra_services
        self._store: Store | None = None
        self._replicas: dict[GroupId, Replica] = {}
        self._runtime: Runtime | None = None
        self._streams: PeerStreams | None = None
        self._server: grpc.aio.Server | None = None
        self._peer_service: PeerService | None = None
        self._stopping = asyncio.Event()
        self._snapshots: SnapshotSender | None = None
        self._sending: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---- life ------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Open the store, join the cluster, serve; answers the address it listens at.

        Raises errors of the engine (another cluster's folder, a second process, lost writes) and
        OSError when the port is taken.
        """
        view, options = self.cluster, self._options
        self._store = Store.open(
            options.data_dir, cluster_id=view.cluster_id, node=view.node, options=options.store
        )
        host = Host(view.node, seed=secrets.randbits(64), settings=options.consensus)
        self._streams = PeerStreams(view, options.credentials, self._tell)
        self._runtime = Runtime(
            self._store,
            host,
            self._replicas,
            self._streams,
            options.consensus,
            NodeMetrics(options.registry),
        )
        for group, configuration in view.groups():
            mine = [r for r in configuration.voters if node_of(r) == view.node]
            # A first start looks like one whose disk was lost: consensus finds out which it is.
            self._store.create_group(group, mine[0], configuration, amnesic=True)
            self._open_replica(host, group, mine[0])
        self._server = grpc.aio.server(options=[*dict([*SERVER_OPTIONS, *PEER_OPTIONS]).items()])
        await services.register(self._server, self, self._maps, version("mailraft"), self._stopping)
        self._snapshots = SnapshotSender(
            self._store, host, view, options.credentials, self._runtime.tell
        )
        self._runtime.send_snapshots_by(self._snapshots.want)
        options.registry.register(ShardCollector(host, self._replicas, self._snapshots.metrics))
        receiver = SnapshotReceiver(self._store, host, view, self._runtime)
        self._peer_service = PeerService(view, self._runtime, receiver)
        peer_service_pb2_grpc.add_PeerServiceServicer_to_server(self._peer_service, self._server)
        for add in self._extra_services:
            add(self._server)
        port = add_port(self._server, options.listen_address, options.credentials)
        await self._server.start()
        self._streams.start()
        self._sending = self._begin(self._snapshots.run(), "snapshots")
        self._running = self._begin(self._runtime.run(), "runtime")
        keeper = Housekeeper(self.replicas, now_s=self.now_s, wall_ms=self.wall_ms)
        self._keeping = self._begin(keeper.run(), "housekeeper")
        return f"{options.listen_address.rpartition(':')[0]}:{port}"

    async def stop(self, grace_s: float) -> None:
        """Finish calls under way (at most grace_s), flush, close."""
        self._stopping.set()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        if self._server is not None:
            stopping = asyncio.ensure_future(self._server.stop(grace_s))
            if self._peer_service is not None:
                self._peer_service.close()
            await stopping
        if self._streams is not None:
            await self._streams.stop()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])
        if self._runtime is not None:
            await self._runtime.stop()
            if self._running is not None:
                await asyncio.wait([self._running])
            self._runtime.close()
        if self._store is not None:
            self._store.close()

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

    def _open_replica(self, host: Host, group: GroupId, replica: int) -> None:
        """One damaged log sets its replica aside, and leaves those of other shards running."""
        assert self._store is not None
        self._replicas[group] = self._replica(host, group, replica, self._store.applied(group)[0])
        try:
            host.add_group(now_s(), group, self._store.load(group), self._store.log(group))
        except (LogCorruptError, CorruptionError) as error:
            log.critical(
                "the replica of shard %d steps aside, it neither votes nor serves: %s. With its "
                "folder moved away this node is rebuilt from its peers (docs/consensus.md)",
                group,
                error,
            )
            self._replicas[group].stop("the log of this replica is damaged; see the node's log")

    def _replica(self, host: Host, group: GroupId, replica: int, applied_index: int) -> Replica:
        assert self._store is not None
        assert self._runtime is not None
        return Replica(
            group,
            replica,
            MailStateMachine(),
            self._store.view(group),
            applied_index,
            wake=self._runtime.wake,
            now=now_s,
            heard=lambda: host.leader_heard_s(group),
        )

    def _tell(self, event: Event) -> None:
        assert self._runtime is not None
        self._runtime.tell(event)

    # ---- what services ask (services.base.Shards) ------------------------------------------------

    @property
    def node_name(self) -> str:
        return next(p.name for p in self.cluster.peers() if p.node == self.cluster.node)

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
        return self._replicas.values()

    def body(self, group: GroupId, index: int, ordinal: int) -> bytes | None:
        assert self._store is not None
        return self._store.body(group, index, ordinal)

    def now_s(self) -> float:
        return now_s()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000
