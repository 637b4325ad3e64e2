"""The servers as Client reaches them: their channels, the cluster map, and who failed lately."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc

from mailraft.client.settings import CLOSED, Settings
from mailraft.router.methods import METHODS, Method
from mailraft.router.pool import SUSPECT_S, LostError, UnreachableError
from mailraft.router.table import RoutingTable, WrongClusterError
from mailraft.v1 import cluster_pb2
from mailraft.wire import credentials, errors
from mailraft.wire.metadata import EPOCH_KEY

MAP_TRY_TIMEOUT_S = 1.0
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_GET_MAP = METHODS["/mailraft.v1.ClusterService/GetClusterMap"]


class BlockingNodes:
    """Usable from several threads. Without `settings.direct` only the targets are known."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._map_lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._callables: dict[tuple[str, str], Any] = {}
        self._table: RoutingTable | None = None
        self._suspects: dict[str, float] = {}  # address: until when it is tried last
        self._closed = False

    @property
    def policy(self) -> cluster_pb2.LevelPolicy:
        """Of the map; without one the defaults."""
        table = self.table
        return cluster_pb2.LevelPolicy() if table is None else table.topology.map.policy

    @property
    def table(self) -> RoutingTable | None:
        """Where everything is, fetched when it is first asked for; None without `direct`."""
        if self._table is None and self._settings.direct:
            with self._map_lock:
                if self._table is None:
                    self._table = RoutingTable(self._fetch_map(self._settings.targets))
        return self._table

    def shard_of(self, account_id: str) -> int | None:
        """The shard of an account; None if the targets find it, or it is of no account."""
        table = self.table if account_id else None
        return None if table is None else table.topology.shard_of(account_id)

    def addresses(self, shard: int | None, replica_id: int) -> Sequence[str]:
        """Whom to ask, best first: the leader, then the other voters; or that replica only."""
        table = self._table
        if shard is None or table is None:
            found = list(self._settings.targets)
        elif replica_id:
            places = table.topology.places(shard)
            found = [place.address for place in places if place.replica_id == replica_id]
        else:
            leader = table.leader(shard)
            voters = [place.address for place in table.topology.places(shard) if place.voter]
            found = list(dict.fromkeys([leader.address, *voters] if leader else voters))
        if not found:
            raise errors.ReplicaNotFoundError(f"shard {shard} has no replica {replica_id}")
        now_s = time.monotonic()
        return sorted(found, key=lambda address: self._suspects.get(address, 0.0) > now_s)

    def call(self, address: str, method: Method, request: Any, timeout_s: float | None) -> Any:
        """One try of a call: its reply, or the stream of its parts, which raises grpc.RpcError. A
        request of many parts is an iterator of them.
        """
        return self._callable(address, method)(
            request, timeout=timeout_s, metadata=self._metadata()
        )

    def unary(self, address: str, method: Method, request: Any, timeout_s: float) -> Any:
        """One try of a unary call; raises MailraftError."""
        try:
            return self.call(address, method, request, timeout_s)
        except grpc.RpcError as error:
            raise self.failure(address, error) from None

    def failure(self, address: str, error: grpc.RpcError) -> errors.MailraftError:
        """What a failed try means; one without an answer makes the address a suspect."""
        if self._closed:
            return errors.FailedPreconditionError(CLOSED)
        told = errors.from_rpc_error(error)
        if told.reason:
            return told
        message = f"{address}: {told.message}"
        broken = "Stream removed" in told.message or "RST_STREAM" in told.message
        if told.code not in _NO_ANSWER and not broken:
            return told
        self._suspects[address] = time.monotonic() + SUSPECT_S
        # gRPC's own word for a request that stayed here.
        unsent = "failed to connect" in told.message
        return UnreachableError(message) if unsent else LostError(message)

    def worked(self, shard: int | None, address: str, *, leads: bool) -> None:
        """An address answered; `leads`: with what only a leader does."""
        self._suspects.pop(address, None)
        table = self._table
        if not leads or shard is None or table is None:
            return
        for place in table.topology.places(shard):
            if place.address == address:
                table.confirm(shard, place)

    def learn(self, shard: int | None, address: str, error: errors.MailraftError) -> None:
        """An address failed: who leads is in doubt, or told, or the map is old."""
        table = self._table
        if shard is None or table is None or isinstance(error, errors.ReplicaLaggingError):
            return
        table.doubt(shard, address)
        table.learn(shard, error)
        if isinstance(error, errors.StaleRouteError):
            self._refresh(table)

    def close(self) -> None:
        """Ends all calls and connections."""
        with self._lock:
            self._closed = True
            channels = list(self._channels.values())
            self._channels.clear()
            self._callables.clear()
        for channel in channels:
            channel.close()

    def _callable(self, address: str, method: Method) -> Any:
        with self._lock:
            if self._closed:
                raise errors.FailedPreconditionError(CLOSED)
            found = self._callables.get((address, method.path))
            if found is None:
                channel = self._channels.get(address)
                if channel is None:
                    secrets = self._settings.credentials
                    channel = credentials.open_sync_channel(address, secrets)
                    self._channels[address] = channel
                kind: Any = channel.unary_unary
                if method.server_streaming:
                    both = method.client_streaming
                    kind = channel.stream_stream if both else channel.unary_stream
                elif method.client_streaming:
                    kind = channel.stream_unary
                found = self._callables[address, method.path] = kind(
                    method.path,
                    request_serializer=method.request.SerializeToString,
                    response_deserializer=method.response.FromString,
                )
            return found

    def _metadata(self) -> Sequence[tuple[str, str]]:
        return () if self._table is None else ((EPOCH_KEY, str(self._table.epoch)),)

    def _refresh(self, table: RoutingTable) -> None:
        places = [place.address for place in table.topology.cluster_places]
        with self._map_lock:
            try:
                table.install(self._fetch_map([*places, *self._settings.targets]))
            except (errors.UnavailableError, WrongClusterError, ValueError):
                return  # the old one is all there is

    def _fetch_map(self, addresses: Sequence[str]) -> cluster_pb2.ClusterMap:
        failed = "no address"
        for address in addresses:
            request = cluster_pb2.GetClusterMapRequest()
            try:
                reply = self.unary(address, _GET_MAP, request, MAP_TRY_TIMEOUT_S)
            except errors.FailedPreconditionError:
                raise  # closed
            except errors.MailraftError as error:
                failed = error.message
            else:
                assert isinstance(reply, cluster_pb2.GetClusterMapResponse)
                return reply.map
        raise errors.UnavailableError(f"no server answers with the cluster map: {failed}")
