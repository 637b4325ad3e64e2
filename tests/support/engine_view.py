"""A View that is a RocksDB, with the entries that made it in its log: what a node applies to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from engine_machines import GROUP, RocksMachine, append, machine_on
from mailraft.node.interfaces import (
    ApplyWrite,
    CompactLog,
    Effect,
    Entry,
    InstallSnapshot,
    LogBase,
)


class EngineView:
    """As DictView. take() comes before apply(), as a log entry comes before its effects."""

    def __init__(self) -> None:
        self._entry: Entry | None = None
        self._open()

    def _open(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mailraft-")
        machine = machine_on("rocksdb", Path(self._folder.name))
        assert isinstance(machine, RocksMachine)
        self.machine = machine

    def take(self, entry: Entry) -> None:
        """Puts an entry into the log."""
        self.machine.store.write([append(entry)])
        self._entry = entry

    def get(self, key: bytes) -> bytes | None:
        return self.machine.store.view(GROUP).get(key)

    def get_many(self, wanted: Sequence[bytes]) -> list[bytes | None]:
        return self.machine.store.view(GROUP).get_many(wanted)

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return self.machine.store.view(GROUP).scan(start, end, reverse=reverse)

    def apply(self, effects: Iterable[Effect]) -> None:
        entry, self._entry = self._entry, None
        assert entry is not None
        self.machine.store.write([ApplyWrite(GROUP, entry.index, entry.term, tuple(effects))])

    def body(self, index: int, ordinal: int) -> bytes | None:
        return self.machine.store.body(GROUP, index, ordinal)

    def compact(self) -> None:
        """Drops from the log all that is applied."""
        store = self.machine.store
        index, term, _ = store.applied(GROUP)
        configuration = store.load(GROUP).base.configuration
        store.write([CompactLog(GROUP, LogBase(index, term, configuration))])

    def restart(self) -> None:
        self.machine.restart()

    def move(self) -> None:
        """To another node, which has nothing: as a shard moves, by a snapshot."""
        before, folder = self.machine.store, self._folder
        before.flush()
        source = before.snapshot(GROUP)
        packs = list(source.packs())
        assert source.totals is not None
        self._open()
        store = self.machine.store
        generation = store.burn_generation(GROUP)
        store.flush()
        sink = store.receive(GROUP, generation)
        for pack in packs:
            sink.add(pack)
        sink.finish(source.totals, source.applied)
        applied = source.applied
        base = LogBase(applied.index, applied.term, before.load(GROUP).base.configuration)
        store.write([InstallSnapshot(GROUP, generation, base, applied.digest)])
        del source  # it holds a view of the store
        before.close()
        folder.cleanup()

    def close(self) -> None:
        self.machine.store.close()
        self._folder.cleanup()
