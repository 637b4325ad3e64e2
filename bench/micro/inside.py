"""Layers of a node: what is prepared, proposed, ordered, applied, written."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.micro.work import ACCOUNTS, BATCH, account, requests

from mailraft.client.ids import request_ids
from mailraft.internal.v1 import command_pb2, raft_pb2
from mailraft.node.consensus.host import Host
from mailraft.node.consensus.messages import AppliedUpTo, Event, PeerUp, Propose, Received
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import (
    AppendEntries,
    ApplyWrite,
    Configuration,
    Entry,
    EntryKind,
    Proposal,
    replica_id,
)
from mailraft.node.mailstore.machine import MailStateMachine
from mailraft.node.proposals import Committed
from mailraft.node.services.base import Call
from mailraft.node.services.content import Budget, prepare
from mailraft.node.services.delivery import Delivery
from mailraft.node.shard import Leadership
from mailraft.v1 import cluster_pb2, delivery_pb2
from mailraft.wire import bodies, feature_levels

GROUP = 1
NODES = (1, 2, 3)
_START_MS = time.time_ns() // 1_000_000


class Prepare:
    """Bytes on their way in: opened, hashed, their header read."""

    def __init__(self) -> None:
        self._requests = requests()

    async def run(self) -> int:
        request = delivery_pb2.DeliverMessagesRequest.FromString(next(self._requests))
        budget = Budget()
        for delivery in request.deliveries:
            await prepare(delivery.content, None, budget, "content", bodies.MAIL_DICTIONARY)
        return BATCH


class Handler:
    """DeliverMessages at a node whose shard answers at once: without preparing the bytes (that is
    a layer of its own), with everything else that a service does.
    """

    def __init__(self) -> None:
        self._requests = requests()
        shards: Any = _Shards()
        self._delivery = Delivery(shards)
        self._plain = delivery_pb2.Content(raw=b"Subject: nothing\r\n\r\n")

    async def run(self) -> int:
        request = delivery_pb2.DeliverMessagesRequest.FromString(next(self._requests))
        for delivery in request.deliveries:
            delivery.content.CopyFrom(self._plain)
        answer = await self._delivery.DeliverMessages(request, Call(time.monotonic() + 10.0))
        assert not answer.results[0].recipients[0].code, answer.results[0]
        return BATCH


class _Shards:
    """Stands where services.base.Shards stands, and where its replica does."""

    node_name, group, replica, epoch = "n1", GROUP, replica_id(1, 1), 1
    leadership = Leadership(replica, 1, leading=True)

    def __init__(self) -> None:
        self.cluster = self
        self._policy = cluster_pb2.LevelPolicy()
        self.feature_level = feature_levels.LEVEL
        self._answer = command_pb2.Reply()
        one = self._answer.deliver.recipients.add()
        one.message.message, one.state.modseq = 7, 9
        one.message.memberships.add(mailbox=1, uid=7, uid_validity=1)

    def replica_for_account(self, _: str) -> _Shards:
        return self

    def policy(self) -> cluster_pb2.LevelPolicy:
        return self._policy

    def stamp_ms(self) -> int:
        return _START_MS

    def admit(self, *_: object) -> None:
        """There is room."""

    def settle(self, command: object) -> None:
        """It says what it needs to."""

    async def propose(
        self, _command: object, _bodies: Sequence[bytes], *, deadline_s: float
    ) -> Committed:
        assert deadline_s
        return Committed(self._answer, 7)


async def proposals() -> list[list[Proposal]]:
    """Commands as handlers propose them, BATCH at a time."""
    made = []
    for encoded in itertools.islice(requests(), 8):
        request = delivery_pb2.DeliverMessagesRequest.FromString(encoded)
        budget, batch = Budget(), []
        for delivery in request.deliveries:
            content = await prepare(
                delivery.content, None, budget, "content", bodies.MAIL_DICTIONARY
            )
            command = command_pb2.Command(
                request_id=delivery.request_id,
                time_ms=_START_MS,
                fingerprint=content.sha256,
                deliver=command_pb2.Deliver(
                    body=content.new_body(0),
                    derived=content.derived,
                    thread_keys=content.thread_keys,
                    recipients=[
                        command_pb2.DeliverRecipient(account_id=each.account_id)
                        for each in delivery.recipients
                    ],
                ),
            )
            batch.append(Proposal(command, (content.packed,)))
        made.append(batch)
    return made


class Apply:
    """The state machine alone, on a store: from an entry to its effects."""

    def __init__(self, store: Store, batches: Sequence[Sequence[Proposal]]) -> None:
        self._store, self._machine = store, MailStateMachine()
        self._view = store.view(GROUP)
        self._batches = itertools.cycle(batches)
        self._index = _last(store)
        self._fresh(create_accounts())

    async def run(self) -> int:
        index, batch = self._index + 1, next(self._batches)
        for proposal in batch:
            command = proposal.command
            assert isinstance(command, command_pb2.Command)
            command.request_id = request_ids.next()
        payload, bodies = self._machine.encode(batch)
        entry = Entry(index, 1, EntryKind.COMMAND, payload, bodies)
        self._machine.apply(self._view, entry)
        return BATCH

    def _fresh(self, commands: Sequence[Proposal]) -> None:
        payload, bodies = self._machine.encode(commands)
        self._index += 1
        entry = Entry(self._index, 1, EntryKind.COMMAND, payload, bodies)
        self._store.write([AppendEntries(GROUP, (entry,))])
        done = self._machine.apply(self._view, entry)
        self._store.write([ApplyWrite(GROUP, entry.index, entry.term, done.effects)])


class Engine:
    """A log entry with its bodies and the effects of one, written and flushed."""

    def __init__(self, store: Store, batches: Sequence[Sequence[Proposal]]) -> None:
        self._store = store
        apply = Apply(store, batches)
        self._index = apply._index
        machine = MailStateMachine()
        self._made = []
        for batch in batches:
            payload, bodies = machine.encode(batch)
            entry = Entry(self._index + 1, 1, EntryKind.COMMAND, payload, bodies)
            self._made.append((payload, bodies, machine.apply(store.view(GROUP), entry).effects))
        self._next = itertools.cycle(self._made)

    async def run(self) -> int:
        self._index += 1
        payload, bodies, effects = next(self._next)
        entry = Entry(self._index, 1, EntryKind.COMMAND, payload, bodies)
        self._store.write([AppendEntries(GROUP, (entry,))])
        self._store.flush()
        self._store.write([ApplyWrite(GROUP, entry.index, entry.term, effects)])
        return BATCH


def create_accounts() -> list[Proposal]:
    """As commands."""
    return [
        Proposal(
            command_pb2.Command(
                request_id=request_ids.next(),
                time_ms=_START_MS,
                create_account=command_pb2.CreateAccount(account_id=account(number)),
            )
        )
        for number in range(ACCOUNTS)
    ]


def _last(store: Store) -> int:
    return store.load(GROUP).last_index


def new_store(folder: Path, node: int = 1) -> Store:
    """With one newborn group of three."""
    store = Store.open(folder / f"n{node}", cluster_id="bench", node=node)
    voters = tuple(replica_id(each, 1) for each in NODES)
    store.create_group(GROUP, replica_id(node, 1), Configuration(1, voters))
    return store


class _Terms:
    """Implements LogReader for a log that is not written: its old entries are asked for their term
    alone, and all are of the term that the group is in.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def entries(self, first: int, last: int, max_bytes: int) -> Sequence[Entry]:
        raise AssertionError(f"nobody lacks {first} to {last}")

    def term(self, index: int) -> int | None:
        found = self._host.status(GROUP)
        return found.term if found is not None else None


class Consensus:
    """Three hosts in one process, without disks: an entry proposed, sent as bytes, acknowledged and
    committed.
    """

    def __init__(self, folder: Path, batches: Sequence[Sequence[Proposal]]) -> None:
        machine = MailStateMachine()
        self._made = itertools.cycle([machine.encode(batch) for batch in batches])
        self._now_s = 1_000.0
        self._hosts: dict[int, Host] = {}
        self._inboxes: dict[int, list[Event]] = {each: [] for each in NODES}
        self._durable = dict.fromkeys(NODES, 0)
        self._stores = [new_store(folder, node) for node in NODES]
        self._token = 0
        self.leader = 0
        for node, store in zip(NODES, self._stores, strict=True):
            host = self._hosts[node] = Host(node, seed=node)
            host.add_group(self._now_s, GROUP, store.load(GROUP), _Terms(host))
            self._inboxes[node] += [PeerUp(peer) for peer in NODES if peer != node]
        while not self.leader:
            self._now_s += 0.05
            self._turn()

    async def run(self) -> int:
        self._token += 1
        payload, bodies = next(self._made)
        self._inboxes[self.leader].append(
            Propose(GROUP, self._token, EntryKind.COMMAND, payload, bodies)
        )
        while self.leader not in self._turn():
            self._now_s += 0.001
        return BATCH  # the followers hear of it with the next one

    def _turn(self) -> set[int]:
        """One of each host; who has committed a command in it."""
        found: set[int] = set()
        for node in NODES:
            inbox, self._inboxes[node] = self._inboxes[node], []
            ready = self._hosts[node].step(self._now_s, inbox, self._durable[node])
            self._durable[node] = ready.sequence
            for peer, frame in ready.messages:
                sent = raft_pb2.ExchangeRequest.FromString(frame.SerializeToString())
                self._inboxes[peer].append(Received(node, 1, sent))
            for each in ready.committed:
                self._inboxes[node].append(AppliedUpTo(GROUP, each.entries[-1].index))
                if any(entry.kind is EntryKind.COMMAND for entry in each.entries):
                    found.add(node)
            for status in ready.changed:
                if status.leading:
                    self.leader = node
        return found

    def close(self) -> None:
        for store in self._stores:
            store.close()
