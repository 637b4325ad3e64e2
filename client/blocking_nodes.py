"""The servers as Client reaches them: their channels, the cluster map, and who failed lately."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from mailraft.client.settings import CLOSED, Settings
from mailraft.client.targets import stand_in_map
from mailraft.router import places
from mailraft.router.attempts import Attempts, Target
from mailraft.router.budget import Extra
from mailraft.router.failures import LostError, UnreachableError, failure
from mailraft.router.hedge import Hedger
from mailraft.router.loads import Loads
from mailraft.router.methods import METHODS, Method
from mailraft.router.pool import SUSPECT_S
from mailraft.router.table import CLUSTER, Place, RoutingTable, WrongClusterError
from mailraft.v1 import cluster_pb2
from mailraft.wire import bodies, credentials, errors, tracing
from mailraft.wire.metadata import EPOCH_KEY

MAP_TRY_TIMEOUT_S = 1.0
_GET_MAP = METHODS["/mailraft.v1.ClusterService/GetClusterMap"]


class BlockingNodes:
    """Usable from several threads. Without `settings.direct` only the targets are known."""

    def __init__(self, settings: Settings) -> None:
        self.extra = Extra()
        self.loads = Loads(time.monotonic)
        self.hedger = Hedger()
        self._settings = settings
        self._lock = threading.Lock()
        self._map_lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._callables: dict[tuple[str, str], Any] = {}
        self._table: RoutingTable | None = None
        self._suspects: dict[str, float] = {}  # address: until when it is tried last
        self._closed = False

    @property
    def table(self) -> RoutingTable:
        """Where everything is, fetched when it is first asked for; without `direct` made up."""
        if self._table is None:
            with self._map_lock:
                if self._table is None:
                    targets, direct = self._settings.targets, self._settings.direct
                    self._table = RoutingTable(
                        self._fetch_map(targets) if direct else stand_in_map(targets)
                    )
        return self._table

    @property
    def dictionary(self) -> int:
        """What all servers can open; none before the first call."""
        if self._table is None:
            return bodies.NO_DICTIONARY
        return bodies.dictionary_at(self._table.topology.map.feature_level)

    def shard_of(self, account_id: str) -> int:
        """The shard of an account; CLUSTER if the targets find it."""
        if not self._settings.direct:
            return CLUSTER
        return self.table.topology.shard_of(account_id)

    def choose(self, attempts: Attempts) -> Place | None:
        """Whom to ask next, of those that the round has not tried."""
        now_s = time.monotonic()
        return places.choose(
            attempts,
            self.table,
            self.loads,
            suspect=lambda place: self._suspects.get(place.address, 0.0) > now_s,
            zone=self._settings.zone,
        )

    def call(self, address: str, method: Method, request: Any, timeout_s: float | None) -> Any:
        """One try of a call: its reply, or the stream of its parts, which raises grpc.RpcError. A
        request of many parts is an iterator of them.
        """
        return self._callable(address, method)(
            request, timeout=timeout_s, metadata=self._metadata()
        )

    def begin(self, address: str, method: Method, request: Any, timeout_s: float) -> Any:
        """One try of a unary call as a grpc.Future, which may be left before it ends."""
        return self._callable(address, method).future(
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
        told = failure(address, errors.from_rpc_error(error))
        if isinstance(told, LostError | UnreachableError):
            self.suspect(address)
        return told

    def suspect(self, address: str) -> None:
        """It did not answer."""
        self._suspects[address] = time.monotonic() + SUSPECT_S

    def worked(self, attempts: Attempts, place: Place) -> None:
        """A place answered."""
        self._suspects.pop(place.address, None)
        if attempts.goal.target is Target.LEADER:
            self.table.confirm(attempts.goal.shard, place)

    def learn(self, attempts: Attempts, place: Place, error: errors.MailraftError) -> None:
        """A place failed: who leads is in doubt, or told, or the map is old."""
        self.table.failed(attempts.goal.shard, place.address, error)
        if isinstance(error, errors.StaleRouteError) and self._settings.direct:
            self._refresh(self.table)
            attempts.tried.clear()

    def install(self, told: cluster_pb2.ClusterMap) -> None:
        """Take a map if it is newer, and its leader hints; one of another cluster never."""
        with self._map_lock:
            try:
                self.table.install(told)
            except (WrongClusterError, ValueError):
                return

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
        table = self._table
        epoch = ((EPOCH_KEY, str(table.epoch)),) if table is not None and table.epoch else ()
        return (*epoch, *tracing.metadata())

    def _refresh(self, table: RoutingTable) -> None:
        known = [place.address for place in table.topology.cluster_places]
        addresses = dict.fromkeys((*known, *self._settings.targets))
        try:
            self.install(self._fetch_map(addresses, table.epoch))
        except errors.UnavailableError:
            return  # the old one is all there is

    def _fetch_map(self, addresses: Iterable[str], known_epoch: int = 0) -> cluster_pb2.ClusterMap:
        """As router.fleet.fetch_map."""
        newest: cluster_pb2.ClusterMap | None = None
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
                if reply.map.epoch > known_epoch:
                    return reply.map
                newest = newest or reply.map
        if newest is not None:
            return newest
        raise errors.UnavailableError(f"no server answers with the cluster map: {failed}")
