"""The nodes as they are reached from here: the routing table, the connections, and newer maps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from mailraft.router.budget import Extra
from mailraft.router.loads import Loads
from mailraft.router.methods import METHODS
from mailraft.router.pool import Metadata, Node, Pool
from mailraft.router.seek import Seeker
from mailraft.router.table import Place, RoutingTable, WrongClusterError
from mailraft.v1 import cluster_pb2
from mailraft.wire import credentials as wire_credentials
from mailraft.wire import errors
from mailraft.wire.metadata import EPOCH_KEY

# One map fetch answers everybody who noticed that the map is old; then not again for this long.
REFRESH_TIMEOUT_S = 3.0
REFRESH_INTERVAL_S = 0.2
FETCH_TRY_TIMEOUT_S = 1.0
# How many nodes one refresh asks before it gives up until the next.
FETCH_NODES_MAX = 16

_GET_MAP = METHODS["/mailraft.v1.ClusterService/GetClusterMap"]

Refresh = Callable[[], Awaitable[cluster_pb2.ClusterMap]]


class Fleet:
    """Shared by everything that calls nodes.

    refresh: fetches a newer map; without it any node is asked. zone: whose replicas are near; "":
    none is.
    """

    def __init__(
        self,
        cluster_map: cluster_pb2.ClusterMap,
        credentials: wire_credentials.AnyCredentials,
        *,
        refresh: Refresh | None = None,
        options: wire_credentials.Options = (),
        zone: str = "",
    ) -> None:
        self.zone = zone
        self.extra = Extra()
        self.loads = Loads(time.monotonic)
        self.stale_routes = 0  # told by nodes
        self.table = RoutingTable(cluster_map)
        self.pool = Pool(credentials, options)
        self.seeker = Seeker(self.table, self.pool, self.install)
        self._refresh = refresh or self._ask_nodes
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_s = float("-inf")

    def node(self, place: Place) -> Node:
        return self.pool.node(place.address)

    def metadata(self) -> Metadata:
        """What goes along with every call."""
        return ((EPOCH_KEY, str(self.table.epoch)),)

    async def refresh(self) -> None:
        """Have a newer map if there is one. Never raises: who has the old one tries on with it."""
        now_s = asyncio.get_running_loop().time()
        if self._refreshing is None and now_s - self._refreshed_s >= REFRESH_INTERVAL_S:
            self._refreshed_s = now_s
            self._refreshing = asyncio.get_running_loop().create_task(self._fetch())
        if self._refreshing is not None:
            await asyncio.shield(self._refreshing)

    def told_epoch(self, epoch: int) -> None:
        """A reply names the epoch of its server's map: fetch it beside the work if it is newer."""
        recent = asyncio.get_running_loop().time() - self._refreshed_s < REFRESH_INTERVAL_S
        if epoch > self.table.epoch and self._refreshing is None and not recent:
            self._refreshed_s = asyncio.get_running_loop().time()
            self._refreshing = asyncio.get_running_loop().create_task(self._fetch())

    async def install(self, told: cluster_pb2.ClusterMap) -> None:
        """Take a map if it is newer, and its leader hints. Raises WrongClusterError, ValueError."""
        if self.table.install(told):
            addresses = {place.address for place in self.table.topology.cluster_places}
            self.loads.keep(addresses)
            await self.pool.keep(addresses)

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        self.seeker.close()
        await self.pool.close()

    async def _fetch(self) -> None:
        try:
            await self.install(await asyncio.wait_for(self._refresh(), REFRESH_TIMEOUT_S))
        except (errors.MailraftError, WrongClusterError, TimeoutError, OSError, ValueError):
            return  # the next STALE_ROUTE asks again
        finally:
            self._refreshing = None

    async def _ask_nodes(self) -> cluster_pb2.ClusterMap:
        addresses = [place.address for place in self.table.topology.cluster_places]
        addresses.sort(key=lambda address: self.pool.node(address).suspect)
        return await fetch_map(self.pool, addresses, known_epoch=self.table.epoch)


async def fetch_map(
    pool: Pool, addresses: Sequence[str], *, known_epoch: int = 0
) -> cluster_pb2.ClusterMap:
    """The cluster map of the first server, node or router, that has a newer one than is known; of
    one that has not, if none has: it may be cut off from the others. Or UnavailableError.
    """
    newest: cluster_pb2.ClusterMap | None = None
    failed: errors.MailraftError = errors.UnavailableError("no address to ask for the cluster map")
    request = cluster_pb2.GetClusterMapRequest(known_epoch=known_epoch)
    for address in addresses[:FETCH_NODES_MAX]:
        try:
            response = await pool.node(address).unary(_GET_MAP, request, FETCH_TRY_TIMEOUT_S, ())
        except errors.MailraftError as error:
            failed = error
            continue
        assert isinstance(response, cluster_pb2.GetClusterMapResponse)
        if response.map.epoch > known_epoch:
            return response.map
        newest = newest or response.map
    if newest is not None:
        return newest
    raise errors.UnavailableError(f"no server answers with the cluster map: {failed.message}")
