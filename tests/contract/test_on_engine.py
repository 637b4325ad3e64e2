"""The model of test_model.py against state machines over the engine: one of two replicas keeps its
state in RocksDB, is restarted, compacts its log, moves to another node, and must not differ in a
byte.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import invariant, rule
from tests.contract.test_model import MailMachine

from apply_driver import ApplyDriver
from dict_view import DictView
from engine_view import EngineView
from mailraft.internal.v1 import command_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import Entry


class EngineDriver(ApplyDriver):
    """Reads from the replica on the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.other = DictView()
        self.engine = EngineView()
        self.views = (self.engine, self.other)

    def apply(self, entry: Entry) -> list[command_pb2.Reply]:
        self.engine.take(entry)
        return super().apply(entry)

    def rows(self) -> dict[bytes, bytes]:
        """All of the state but what the engine adds itself."""
        own = keys.SHARD_RECORD
        dead = keys.dead_body(0)[:3]
        found = self.engine.scan(b"", b"\xff\xff\xff")
        return {key: value for key, value in found if key != own and not key.startswith(dead)}


class EngineMachine(MailMachine):
    """As MailMachine."""

    def make(self) -> EngineDriver:
        self.store = EngineDriver()
        return self.store

    @rule()
    def restart(self) -> None:
        self.store.engine.restart()

    @rule()
    def compact(self) -> None:
        if self.store.entries:
            self.store.engine.compact()

    @rule()
    def move(self) -> None:
        """Invariant 18: what a client knows from before the shard moved holds after it."""
        if self.store.entries:
            self.store.engine.move()

    @invariant()
    def both_replicas_hold_the_same(self) -> None:
        assert self.store.rows() == self.store.other.rows
        for index, ordinal in self.store.packed:
            stored = self.store.engine.body(index, ordinal)
            assert stored == self.store.packed[index, ordinal], "a body that is in use is there"

    def teardown(self) -> None:
        """Once the log is gone no body is left that nobody knows of."""
        if self.store.entries:
            self.store.engine.compact()
            last = self.store.entries[-1].index
            for entry in self.store.entries:
                for ordinal in range(len(entry.bodies)):
                    there = self.store.engine.body(entry.index, ordinal) is not None
                    assert there == ((entry.index, ordinal) in self.store.packed), last
        self.store.engine.close()


TestMailModelOnEngine = EngineMachine.TestCase
TestMailModelOnEngine.settings = settings(max_examples=12, stateful_step_count=40, deadline=None)
