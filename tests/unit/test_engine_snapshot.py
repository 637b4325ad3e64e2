"""Compaction of a log, and snapshots from one store into another, on both kinds of disk."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine_machines import (
    BIRTH,
    EVERYTHING,
    GROUP,
    KINDS,
    REPLICA,
    Machine,
    all_entries,
    append,
    apply,
    command,
    lives,
    machine_on,
)
from mailraft.node.engine import keys
from mailraft.node.engine.errors import CorruptionError, InvalidWriteError
from mailraft.node.engine.records import AppliedPosition
from mailraft.node.engine.snapshot import Pack, SnapshotDamagedError, SnapshotSource, Totals
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import (
    CompactLog,
    Configuration,
    HardState,
    InstallSnapshot,
    LogBase,
    Put,
    SaveHardState,
)

LATER = Configuration(2, BIRTH.voters)


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """Each kind of disk in turn."""
    found = machine_on(request.param, tmp_path / "one")
    yield found
    found.store.close()


@pytest.fixture(params=KINDS)
def follower(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """Another disk, of each kind."""
    found = machine_on(request.param, tmp_path / "two")
    yield found
    found.store.close()


def filled(store: Store, last: int = 40, *, seed: int = 1) -> None:
    """Entries up to `last`, each with a body and applied."""
    draw = random.Random(seed)
    for index in range(2, last + 1):
        store.write(
            [
                append(command(index, draw.randbytes(draw.randrange(1, 9000)))),
                apply(index, Put(b"k%05d" % index, draw.randbytes(draw.randrange(900)))),
            ]
        )
    store.flush()


def base(index: int, term: int = 1) -> LogBase:
    """Behind an entry, under another configuration than at birth."""
    return LogBase(index, term, LATER)


def packed(source: SnapshotSource) -> tuple[list[Pack], Totals]:
    """All of it."""
    packs = list(source.packs())
    assert source.totals is not None
    return packs, source.totals


def received(store: Store, source: SnapshotSource) -> int:
    """Brings a snapshot in; answers its generation, which is not live yet."""
    packs, totals = packed(source)
    generation = store.burn_generation(GROUP)
    store.flush()
    sink = store.receive(GROUP, generation)
    for pack in packs:
        sink.add(pack)
    sink.finish(totals, source.applied)
    return generation


def install(generation: int, applied: AppliedPosition) -> InstallSnapshot:
    """The write that makes it live."""
    return InstallSnapshot(GROUP, generation, base(applied.index, applied.term), applied.digest)


def state_of(store: Store) -> dict[bytes, bytes]:
    """Every row of the state."""
    return dict(store.view(GROUP).scan(*EVERYTHING))


# ---- compaction ----------------------------------------------------------------------------------


def test_compaction_moves_the_start_and_keeps_bodies(machine: Machine) -> None:
    """What is below the new base is gone from the log for good; its bodies are still found."""
    filled(machine.store)
    before = state_of(machine.store)
    machine.store.write([CompactLog(GROUP, base(30))])
    for store in lives(machine):
        found = store.load(GROUP)
        assert (found.base, found.last_index, found.applied_index) == (base(30), 40, 40)
        assert [entry.index for entry in all_entries(store)] == list(range(31, 41))
        assert store.log(GROUP).term(30) is None
        assert store.body(GROUP, 7, 0) is not None
        assert state_of(store) == before
        assert store._backend.get(keys.LOG, keys.log_entry(GROUP, 30)) is None
    machine.store.write([append(command(41)), CompactLog(GROUP, base(40))])
    assert [entry.index for entry in all_entries(machine.store)] == [41]


def test_only_what_was_applied_is_compacted(machine: Machine) -> None:
    """An entry that is not applied, or a base that moves back, is a bug of the caller."""
    filled(machine.store, 10)
    machine.store.write([append(command(11))])
    for index in (11, 0):
        with pytest.raises(InvalidWriteError, match="compacts to"):
            machine.store.write([CompactLog(GROUP, base(index))])
    machine.store.write([CompactLog(GROUP, base(8))])
    with pytest.raises(InvalidWriteError, match="compacts to 7"):
        machine.store.write([CompactLog(GROUP, base(7))])


def test_the_size_of_a_log_is_known_about(machine: Machine) -> None:
    """A start knows about how large each log is without reading it."""
    assert machine.store.load(GROUP).log_bytes == 0
    filled(machine.store, 200)
    exact = sum(entry.skeleton_bytes for entry in all_entries(machine.store))
    for store in lives(machine):
        assert exact * 0.8 < store.load(GROUP).log_bytes < exact * 1.5


# ---- snapshots -----------------------------------------------------------------------------------


def test_a_snapshot_makes_the_receiver_equal(machine: Machine, follower: Machine) -> None:
    """State, bodies, digest and configuration arrive; the old log and state are gone."""
    filled(machine.store, 300)
    filled(follower.store, 20, seed=2)
    follower.store.write([append(command(21)), SaveHardState(GROUP, HardState(7, REPLICA))])
    source = machine.store.snapshot(GROUP)
    generation = received(follower.store, source)
    assert follower.store.applied(GROUP)[0] == 20, "nothing shows before it is installed"
    follower.store.write([install(generation, source.applied)])
    follower.store.drop_retired()
    for store in lives(follower):
        found = store.load(GROUP)
        assert (found.base, found.last_index, found.applied_index) == (base(300), 300, 300)
        assert found.hard_state == HardState(7, REPLICA)
        assert store.applied(GROUP) == machine.store.applied(GROUP)
        assert state_of(store) == state_of(machine.store)
        assert not all_entries(store)
        assert {store.body(GROUP, i, 0) for i in range(2, 301)} == {
            machine.store.body(GROUP, i, 0) for i in range(2, 301)
        }
        assert not list(
            store._backend.scan(
                keys.STATE, keys.state_prefix(GROUP, 0), keys.state_prefix(GROUP, generation)
            )
        )
    follower.store.write([append(command(301, b"x")), apply(301, Put(b"new", b"1"))])
    assert follower.restart().view(GROUP).get(b"new") == b"1"


def test_a_snapshot_is_pinned_to_its_start(machine: Machine, follower: Machine) -> None:
    """Writes and compaction that come while it is read do not show in it."""
    filled(machine.store, 200)
    expected = state_of(machine.store)
    source = machine.store.snapshot(GROUP)
    machine.store.write([append(command(201, b"late")), apply(201, Put(b"k00002", b"changed"))])
    machine.store.write([CompactLog(GROUP, base(201))])
    generation = received(follower.store, source)
    follower.store.write([install(generation, source.applied)])
    assert state_of(follower.store) == expected
    assert follower.store.body(GROUP, 201, 0) is None


def test_an_entry_that_is_not_applied_is_not_sent(machine: Machine, follower: Machine) -> None:
    """A body of the log that may still be truncated is no part of the state."""
    filled(machine.store, 10)
    machine.store.write([append(command(11, b"not committed"))])
    source = machine.store.snapshot(GROUP)
    generation = received(follower.store, source)
    follower.store.write([install(generation, source.applied)])
    assert follower.store.body(GROUP, 10, 0) is not None
    assert follower.store.body(GROUP, 11, 0) is None


def test_only_a_whole_and_newer_snapshot_is_installed(machine: Machine, follower: Machine) -> None:
    """Row 16: not over what was applied; and never without all of its rows."""
    filled(machine.store, 10)
    filled(follower.store, 10, seed=2)
    source = machine.store.snapshot(GROUP)
    generation = received(follower.store, source)
    with pytest.raises(InvalidWriteError, match="snapshot of 10 over 10"):
        follower.store.write([install(generation, source.applied)])
    ahead = replace(source.applied, index=12)
    with pytest.raises(InvalidWriteError, match="holds"):
        follower.store.write([install(generation, ahead)])
    with pytest.raises(InvalidWriteError, match="never begun"):
        follower.store.write([install(generation + 1, ahead)])
    burnt = follower.store.burn_generation(GROUP)
    with pytest.raises(InvalidWriteError, match="holds None"):
        follower.store.write([install(burnt, ahead)])
    assert follower.store.applied(GROUP)[0] == 10


def test_damage_on_the_way_is_detected(machine: Machine, follower: Machine) -> None:
    """A flipped bit, a lost, doubled or swapped pack, a missing end: none becomes a replica."""
    filled(machine.store, 400)
    source = machine.store.snapshot(GROUP)
    packs, totals = packed(source)
    assert len(packs) >= 4
    flipped = replace(packs[1], rows=packs[1].rows[:-1] + bytes((packs[1].rows[-1] ^ 1,)))
    for bad in (
        [packs[0], flipped],
        [packs[0], packs[2]],
        [packs[0], packs[0]],
        [replace(packs[0], number=1)],
        [replace(packs[0], row_count=1)],
    ):
        sink = follower.store.receive(GROUP, follower.store.burn_generation(GROUP))
        *good, last = bad
        for pack in good:
            sink.add(pack)
        with pytest.raises(SnapshotDamagedError):
            sink.add(last)
    sink = follower.store.receive(GROUP, follower.store.burn_generation(GROUP))
    for pack in packs[:-1]:
        sink.add(pack)
    with pytest.raises(SnapshotDamagedError, match="arrived"):
        sink.finish(totals, source.applied)
    sink.add(packs[-1])
    with pytest.raises(SnapshotDamagedError, match="it holds"):
        sink.finish(totals, replace(source.applied, digest=bytes(16)))


def test_a_damaged_sender_sends_nothing_whole(tmp_path: Path) -> None:
    """Damage under a scan ends it with an error, never early."""
    machine = machine_on("simulated", tmp_path)
    filled(machine.store, 50)
    machine.store.damage(keys.STATE, keys.state_prefix(GROUP, 1) + b"k00030")  # type: ignore[attr-defined]
    source = machine.store.snapshot(GROUP)
    with pytest.raises(CorruptionError):
        list(source.packs())
    assert source.totals is None


def test_leftovers_go_at_the_next_start(machine: Machine, follower: Machine) -> None:
    """A snapshot that was received and never installed is removed, its number never given again."""
    filled(machine.store, 100)
    filled(follower.store, 5, seed=2)
    before = state_of(follower.store)
    first = received(follower.store, machine.store.snapshot(GROUP))
    follower.store.flush()
    store = follower.restart()
    assert state_of(store) == before
    for family, low, high in (
        (keys.STATE, keys.state_prefix(GROUP, first), keys.state_prefix(GROUP + 1, 0)),
        (keys.BODY, keys.body(GROUP, first, 0), keys.body(GROUP + 1, 0, 0)),
    ):
        assert not list(store._backend.scan(family, low, high))
    assert store.burn_generation(GROUP) == first + 1


def test_the_old_generation_stays_while_it_is_read(machine: Machine, follower: Machine) -> None:
    """A reader finishes on what it began with; behind the last one the old rows go."""
    filled(machine.store, 50)
    filled(follower.store, 5, seed=2)
    reader = follower.store.view(GROUP)
    old = dict(reader.scan(*EVERYTHING))
    source = machine.store.snapshot(GROUP)
    follower.store.write([install(received(follower.store, source), source.applied)])
    follower.store.drop_retired()
    assert dict(reader.scan(*EVERYTHING)) == old != state_of(follower.store)
    began = reader.scan(*EVERYTHING)
    del reader
    gc.collect()
    follower.store.drop_retired()
    assert dict(began) == old
    low, high = keys.state_prefix(GROUP, 1), keys.state_prefix(GROUP, 2)
    assert not list(follower.store._backend.scan(keys.STATE, low, high))
