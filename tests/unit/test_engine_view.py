"""Rows of a shard's state that are kept in memory never differ from those on disk."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_machines import GROUP, KINDS, Machine, append, apply, command, machine_on
from mailraft.node.engine import keys, view
from mailraft.node.interfaces import Delete, DeleteRange, Effect, Put

PREFIXES = [keys.account_prefix(number, b"user%d" % number) for number in range(4)]
ROWS = [
    make(prefix)
    for prefix in PREFIXES
    for make in (
        keys.account_record,
        lambda prefix: keys.mailbox_record(prefix, 1),
        lambda prefix: keys.mailbox_role(prefix, 1),
        lambda prefix: keys.message_record(prefix, 1),
    )
]


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """Each kind of disk in turn."""
    found = machine_on(request.param, tmp_path)
    yield found
    found.store.close()


def test_what_is_read_is_what_was_written_last(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was kept before, and was put, removed, or removed with a range since."""
    monkeypatch.setattr(view, "KEPT_ROWS_MAX", 7)
    chance, rows, read = random.Random(1), dict[bytes, bytes](), machine.store.view(GROUP)
    for index in range(2, 200):
        effects: list[Effect] = []
        for key in chance.sample(ROWS, 4):
            if chance.random() < 0.7:
                rows[key] = chance.randbytes(chance.choice((1, 400, view.KEPT_BYTES_MAX + 1)))
                effects.append(Put(key, rows[key]))
            else:
                rows.pop(key, None)
                effects.append(Delete(key))
        if not chance.randrange(20):
            effects = [DeleteRange(*keys.account_rows(PREFIXES[0])), *effects]
            put = {effect.key for effect in effects if isinstance(effect, Put)}
            for key in [key for key in rows if key.startswith(PREFIXES[0]) and key not in put]:
                del rows[key]
        machine.store.write([append(command(index)), apply(index, *effects)])
        for key in chance.sample(ROWS, 8):
            assert read.get(key) == rows.get(key)
    assert len(read._kept) <= 7


def test_only_short_rows_of_accounts_and_mailboxes_are_kept(machine: Machine) -> None:
    """So many of them are few bytes, and messages that are read once push none of them out."""
    long = keys.mailbox_record(PREFIXES[0], 2)
    puts = [Put(key, b"x") for key in ROWS]
    puts.append(Put(long, bytes(view.KEPT_BYTES_MAX + 1)))
    machine.store.write([append(command(2)), apply(2, *puts)])
    read = machine.store.view(GROUP)
    for key in (*ROWS, long):
        assert read.get(key)
    assert set(read._kept) == {key for key in ROWS if key[key[2] + 3] in {1, 2, 4}}
