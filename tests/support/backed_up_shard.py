"""A shard without nodes: an engine and the state machine, and what a backup would read of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mailraft.cluster.backup.archive import Archive, Reach
from mailraft.cluster.backup.chunks import ShardWriter
from mailraft.cluster.backup.manifest import Manifest
from mailraft.cluster.backup.store import BackupStore
from mailraft.internal.v1 import command_pb2
from mailraft.node.consensus.messages import entry_to_wire
from mailraft.node.engine.snapshot import rows_of
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import (
    AppendEntries,
    ApplyWrite,
    Configuration,
    Entry,
    EntryKind,
    Proposal,
)
from mailraft.node.mailstore import chores
from mailraft.node.mailstore.machine import MailStateMachine
from mailraft.wire import bodies

GROUP, CLUSTER = 1, "cluster-a"
START_MS = 1_800_000_000_000


class BackedUpShard:
    """Times are milliseconds since START_MS."""

    def __init__(self, folder: Path) -> None:
        self.engine = Store.open(folder, cluster_id=CLUSTER, node=1)
        self.engine.create_group(GROUP, 1 << 32, Configuration(1, (1 << 32,)))
        self._machine = MailStateMachine()
        self.entries: list[Entry] = []
        self.digests: dict[int, bytes] = {}

    def close(self) -> None:
        self.engine.close()

    @property
    def index(self) -> int:
        return self.engine.applied(GROUP)[0]

    def do(self, *commands: command_pb2.Command, raw: bytes | None = None) -> None:
        """One entry; `raw` is the body of its only command."""
        packed = () if raw is None else (bodies.pack(raw),)
        payload, own = self._machine.encode([Proposal(each, packed) for each in commands])
        entry = Entry(self.index + 1, 1, EntryKind.COMMAND, payload, own)
        if not self.entries:  # the engine's log begins behind the entry it was born with
            entry = Entry(2, 1, EntryKind.COMMAND, payload, own)
        applied = self._machine.apply(self.engine.view(GROUP), entry)
        for reply in applied.replies:
            assert isinstance(reply, command_pb2.Reply)
            assert reply.WhichOneof("outcome") != "refusal", reply
        write = ApplyWrite(GROUP, entry.index, 1, applied.effects)
        self.engine.write([AppendEntries(GROUP, (entry,)), write])
        self.entries.append(entry)
        self.digests[entry.index] = self.engine.applied(GROUP)[2]

    def create(self, account: str, at_ms: int = 0) -> None:
        """An account."""
        action = command_pb2.CreateAccount(account_id=account)
        self.do(command_pb2.Command(time_ms=START_MS + at_ms, create_account=action))

    def deliver(self, account: str, raw: bytes, at_ms: int = 0) -> None:
        """One mail."""
        self.do(delivery(account, raw, at_ms), raw=raw)

    def keep_up(self, now_ms: int) -> None:
        """What is due: chores, and the collection of bodies."""
        for command in chores.due_commands(self.engine.view(GROUP), now_ms, 1_000):
            command.time_ms = now_ms
            self.do(command)
        collect = command_pb2.CollectBodies()
        self.do(command_pb2.Command(time_ms=now_ms, collect_bodies=collect))

    def backup(self, store: BackupStore, name: str, parent: Manifest | None = None) -> Manifest:
        """As create() makes one."""
        before = parent.shard(GROUP) if parent is not None else None
        above = before.index if before is not None else 0
        source = self.engine.snapshot(GROUP, bodies_above=above)
        writer = ShardWriter(store, GROUP, source.applied, before)
        for pack in source.packs():
            for key, value in rows_of(pack):
                writer.add(pack.family, key, value)
        shard = writer.finish()
        parent_id = parent.id if parent is not None else ""
        manifest = Manifest(
            name, CLUSTER, "0", shard.index, 0, parent_id, writer.new_bytes, shards=(shard,)
        )
        store.put(manifest.name, manifest.encode())
        return manifest

    def archive(self, archive: Archive, after: int, until: int, proven_ms: int) -> None:
        """As a stream archives the entries in (after, until]."""
        some = [entry_to_wire(each) for each in self.entries if after < each.index <= until]
        archive.add({GROUP: some}, {GROUP: Reach(until, START_MS + proven_ms)})


def delivery(account: str, raw: bytes, at_ms: int) -> command_pb2.Command:
    """A mail for one account; its body is the command's first."""
    packed = bodies.pack(raw)
    body = command_pb2.NewBody(
        size_bytes=len(raw), stored_bytes=len(packed), sha256=hashlib.sha256(raw).digest()
    )
    recipients = [command_pb2.DeliverRecipient(account_id=account)]
    action = command_pb2.Deliver(body=body, recipients=recipients)
    return command_pb2.Command(time_ms=START_MS + at_ms, deliver=action)
