"""The demo's proof: everything is read back from every replica, and compared byte by byte.

Each node is asked directly, at LOCAL, for the one replica it holds: nothing is forwarded, and
nothing of our own client or router stands between.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from mailraft.client import MailraftError
from mailraft.cluster.demo_delivery import Ledger
from mailraft.cluster.demo_replica import Body, Replica
from mailraft.cluster.errors import ClusterError
from mailraft.router.table import Topology
from mailraft.v1 import cluster_pb2
from mailraft.wire.credentials import AnyCredentials, open_channel

ACCOUNTS_AT_ONCE = 4  # of one node


@dataclass(slots=True)
class Comparison:
    """What all replicas together gave back, against what was sent. Counted by delivery."""

    read: int = 0
    identical: int = 0
    lost: set[tuple[str, str]] = field(default_factory=set)
    different: set[tuple[str, str]] = field(default_factory=set)
    duplicates: set[tuple[str, str]] = field(default_factory=set)
    # Deliveries without an acknowledgement may have been stored all the same.
    unacknowledged_stored: set[tuple[str, str]] = field(default_factory=set)
    first_bad: str = ""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.different or self.duplicates)

    def bad(self, what: set[tuple[str, str]], key: tuple[str, str], why: str) -> None:
        what.add(key)
        self.first_bad = self.first_bad or why


async def read_back(
    cluster_map: cluster_pb2.ClusterMap,
    credentials: AnyCredentials,
    accounts: Sequence[str],
    ledger: Ledger,
) -> Comparison:
    """Wait until every replica has caught up, then read all of it and compare."""
    topology = Topology(cluster_map)
    by_shard: defaultdict[int, list[str]] = defaultdict(list)
    for account in accounts:
        by_shard[topology.shard_of(account)].append(account)
    comparison = Comparison()
    for sent in ledger.collided:
        comparison.bad(comparison.lost, (sent.account, sent.name), f"{sent.name}: same id twice")
    channels = {node.id: open_channel(node.address, credentials) for node in cluster_map.nodes}
    try:
        async with asyncio.TaskGroup() as group:
            for node, channel in channels.items():
                group.create_task(
                    _read_node(cluster_map, node, channel, by_shard, ledger, comparison)
                )
    except* (ClusterError, MailraftError) as failures:
        raise _first(failures) from None
    finally:
        await asyncio.gather(*(channel.close(None) for channel in channels.values()))
    return comparison


async def _read_node(
    cluster_map: cluster_pb2.ClusterMap,
    node: int,
    channel: grpc.aio.Channel,
    accounts: dict[int, list[str]],
    ledger: Ledger,
    comparison: Comparison,
) -> None:
    gate = asyncio.Semaphore(ACCOUNTS_AT_ONCE)

    async def read(replica: Replica, account: str) -> None:
        async with gate:
            listed = await replica.listing(account)
            bodies = await replica.bodies(account, listed)
            ids = [message.id for message in listed]
            compare(f"n{node}", account, ids, bodies, ledger, comparison)

    for shard in cluster_map.shards:
        for placed in shard.replicas:
            if placed.node_id == node and accounts.get(shard.id):
                replica = Replica(channel, f"n{node}", placed.replica_id)
                last_index = max(1, ledger.last_index[shard.id])
                await replica.catch_up(accounts[shard.id][0], last_index)
                await asyncio.gather(*(read(replica, each) for each in accounts[shard.id]))


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def compare(
    place: str,
    account: str,
    listed: list[str],
    bodies: dict[str, Body | str],
    ledger: Ledger,
    comparison: Comparison,
) -> None:
    """Judge what one replica gave back of one account's INBOX."""
    where = f"on {place}, account {account}"
    comparison.read += len(listed)
    for message_id, times in Counter(listed).items():
        if times > 1:
            why = f"message {message_id} is listed {times} times {where}"
            comparison.bad(comparison.duplicates, (account, message_id), why)
    stored = ledger.stored[account]
    for message_id, sent in stored.items():
        body, key = bodies.get(message_id), (account, message_id)
        why = f"{sent.name} ({message_id}, {sent.size_bytes} bytes) {where}"
        if body is None:
            comparison.bad(comparison.lost, key, f"{why}: not there")
        elif isinstance(body, str):
            comparison.bad(comparison.lost, key, f"{why}: {body}")
        elif body == Body(sent.size_bytes, sent.sha256):
            comparison.identical += 1
        else:
            comparison.bad(comparison.different, key, f"{why}: other bytes, {body.size_bytes}")
    surplus = {each: body for each, body in bodies.items() if each not in stored}
    _compare_surplus(account, where, surplus, ledger, comparison)


def _compare_surplus(
    account: str,
    where: str,
    surplus: dict[str, Body | str],
    ledger: Ledger,
    comparison: Comparison,
) -> None:
    """What nobody was told of: a delivery whose answer was lost, else a duplicate."""
    pending = Counter(
        (sent.size_bytes, sent.sha256)
        for sent, _ in ledger.unacknowledged
        if sent.account == account
    )
    for message_id, body in surplus.items():
        key = (body.size_bytes, body.sha256) if isinstance(body, Body) else (0, b"")
        if pending[key] > 0:
            pending[key] -= 1
            comparison.unacknowledged_stored.add((account, message_id))
        else:
            why = f"message {message_id} {where} was not delivered under this id"
            comparison.bad(comparison.duplicates, (account, message_id), why)
