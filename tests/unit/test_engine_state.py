"""What a store promises about state, held by RocksDB and by the simulator's disk alike."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from tests.sim.disk import SimDisk

from engine_machines import (
    BIRTH,
    EVERYTHING,
    GROUP,
    KINDS,
    OTHER,
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
from mailraft.node.engine.checksum import chain_digest
from mailraft.node.engine.errors import (
    InvalidWriteError,
)
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import (
    Delete,
    DeleteRange,
    Effect,
    Put,
    TruncateLog,
    Write,
    replica_id,
)


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """Each kind of disk in turn."""
    found = machine_on(request.param, tmp_path)
    yield found
    found.store.close()


@pytest.fixture
def store(machine: Machine) -> Store:
    """The store of a machine that is not restarted."""
    return machine.store


# ---- state ---------------------------------------------------------------------------------------


def test_effects_and_applied_index_are_one_write(machine: Machine) -> None:
    """State, applied index and term are there together, at once and after a restart."""
    machine.store.write(
        [
            append(command(2), command(3, term=2)),
            apply(2, Put(b"a", b"1"), Put(b"b", b"")),
            apply(3, Put(b"a", b"2"), Delete(b"b"), Put(b"c\0\xff", bytes(range(256))), term=2),
        ]
    )
    for store in lives(machine):
        assert store.applied(GROUP)[:2] == (3, 2)
        assert store.load(GROUP).applied_index == 3
        view = store.view(GROUP)
        assert view.get(b"a") == b"2"
        assert view.get(b"b") is None
        assert view.get_many([b"c\0\xff", b"b", b"a"]) == [bytes(range(256)), None, b"2"]


def test_an_entry_is_applied_once(store: Store) -> None:
    """An index at or below the applied one is refused; entries without effects may be left out."""
    store.write([apply(2, Put(b"a", b"1"))])
    for index in (2, 1, 0):
        with pytest.raises(InvalidWriteError):
            store.write([apply(index, Put(b"a", b"2"))])
    store.write([apply(5)])
    assert store.applied(GROUP)[0] == 5
    assert store.view(GROUP).get(b"a") == b"1"


def test_no_effect_can_cover_the_applied_index(machine: Machine) -> None:
    """A state machine that deletes everything still has an applied index."""
    machine.store.write([append(command(2)), apply(2, DeleteRange(*EVERYTHING))])
    assert machine.restart().applied(GROUP)[0] == 2


def test_effects_are_carried_out_in_order(machine: Machine) -> None:
    """What is put behind a range delete of the same entry is there, what was put before is not."""
    machine.store.write([apply(2, *(Put(b"k%d" % i, b"old") for i in range(10)))])
    machine.store.write(
        [
            apply(
                3,
                Put(b"k4", b"lost"),
                DeleteRange(b"k2", b"k7"),
                Put(b"k5", b"new"),
                DeleteRange(b"k8", b"k8"),
                DeleteRange(b"k9", b"k1"),
            )
        ]
    )
    for store in lives(machine):
        rows = dict(store.view(GROUP).scan(b"k", b"l"))
        assert sorted(rows) == [b"k0", b"k1", b"k5", b"k7", b"k8", b"k9"]
        assert rows[b"k5"] == b"new"


def test_scans_are_half_open_and_go_both_ways(machine: Machine) -> None:
    """A scan gives start <= key < end in order, and neither neighbours' keys nor the prefix."""
    machine.store.create_group(GROUP - 1, REPLICA, BIRTH)
    machine.store.create_group(GROUP + 1, REPLICA, BIRTH)
    wanted = [b"\0", b"a", b"a\0", b"ab", b"b", b"\xff\xfe"]
    for group in (GROUP - 1, GROUP, GROUP + 1):
        puts = (Put(key, key + b"=%d" % group) for key in wanted)
        machine.store.write([append(command(2), group=group), apply(2, *puts, group=group)])

    def found(start: bytes, end: bytes, *, back: bool = False) -> list[bytes]:
        rows = list(machine.store.view(GROUP).scan(start, end, reverse=back))
        assert all(value == key + b"=7" for key, value in rows)
        return [key for key, _ in rows]

    for store in lives(machine):
        assert found(b"", b"\xff\xff") == wanted
        assert found(b"", b"\xff\xff", back=True) == wanted[::-1]
        assert found(b"a", b"b") == [b"a", b"a\0", b"ab"]
        assert found(b"a", b"b", back=True) == [b"ab", b"a\0", b"a"]
        assert found(b"a\0", b"ab") == [b"a\0"]
        assert found(b"a\0\0", b"aa", back=True) == []
        assert found(b"b", b"a") == []
        assert found(b"b", b"b", back=True) == []
        assert found(b"c", b"d") == []
        assert [key for key, _ in store.view(GROUP).scan(*EVERYTHING)][-1] == keys.SHARD_RECORD


def test_a_scan_is_pinned_to_its_start(store: Store) -> None:
    """Writes after scan() was called are not seen by it, even before its first pair."""
    store.write([apply(2, *(Put(b"k%d" % i, b"old") for i in range(6)))])
    view = store.view(GROUP)
    early, late = view.scan(b"k", b"l"), view.scan(b"k", b"l", reverse=True)
    assert next(late) == (b"k5", b"old")
    store.write([apply(3, Put(b"k0", b"new"), Delete(b"k3"), Put(b"k9", b"new"))])
    assert list(early) == [(b"k%d" % i, b"old") for i in range(6)]
    assert list(late) == [(b"k%d" % i, b"old") for i in range(4, -1, -1)]
    assert view.get(b"k0") == b"new"


def test_many_scans_keep_their_own_ends(store: Store) -> None:
    """Scans that are open together each end where they were told to."""
    store.write([apply(2, *(Put(b"%04d" % i, b"x") for i in range(300)))])
    scans = [store.view(GROUP).scan(b"", b"%04d" % i, reverse=bool(i % 2)) for i in range(300)]
    assert [sum(1 for _ in scan) for scan in scans] == list(range(300))


# ---- digests -------------------------------------------------------------------------------------


def test_equal_effects_give_equal_digests(machine: Machine) -> None:
    """Replicas that applied the same entries agree, whatever disk and restarts they had."""
    twin = SimDisk(node=2)
    twin.create_group(OTHER, replica_id(2, 1), BIRTH)
    history: list[tuple[Effect, ...]] = [
        (Put(b"a", b"1"), Put(b"b", b"2")),
        (),
        (Delete(b"a"), DeleteRange(b"a", b"c")),
    ]
    digests = set()
    for index, effects in enumerate(history, 2):
        machine.store.write([append(command(index)), apply(index, *effects)])
        twin.write([apply(index, *effects, group=OTHER)])
        digests.add(machine.store.applied(GROUP))
        assert machine.restart().applied(GROUP) == twin.applied(OTHER)
    assert len(digests) == len(history)


def test_a_digest_tells_effects_apart() -> None:
    """Moving a byte between key and value, or the order of effects, changes the digest."""
    different: list[tuple[Effect, ...]] = [
        (),
        (Put(b"a", b"b"),),
        (Put(b"ab", b""),),
        (Put(b"", b"ab"),),
        (Delete(b"ab"),),
        (DeleteRange(b"a", b"b"),),
        (Put(b"a", b"b"), Delete(b"a")),
        (Delete(b"a"), Put(b"a", b"b")),
    ]
    digests = {chain_digest(bytes(16), effects) for effects in different}
    assert len(digests) == len(different)


def test_the_digest_is_the_documented_one() -> None:
    """Stored digests stay comparable between releases: xxh3-128 over lengths, keys and values."""
    effects = (Put(b"k", b"vv"), Delete(b"d"), DeleteRange(b"s", b"e"))
    plain = bytes(16) + b"\1\1\0\0\0k\2\0\0\0vv" + b"\2\1\0\0\0d" + b"\3\1\0\0\0s\1\0\0\0e"
    assert chain_digest(bytes(16), effects) == xxhash.xxh3_128_digest(plain)
    assert chain_digest(bytes(16), ()) == xxhash.xxh3_128_digest(bytes(16))


# ---- the simulator's disk ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_simulated_disk_answers_as_rocksdb_does(tmp_path: Path, seed: int) -> None:
    """The same random writes, scans and restarts give the same answers on both."""
    chance = random.Random(seed)
    machines = [machine_on(kind, tmp_path) for kind in KINDS]

    def key() -> bytes:
        return bytes(chance.choices(b"\0a\xff", k=chance.randint(0, 4)))

    def effect() -> Effect:
        kinds: list[Effect] = [
            Put(key(), chance.randbytes(9)),
            Delete(key()),
            DeleteRange(key(), key()),
        ]
        return chance.choices(kinds, weights=(6, 2, 1))[0]

    for _ in range(150):
        found = machines[0].store.load(GROUP)
        writes: list[Write] = []
        floor = found.last_index
        if found.last_index > found.applied_index and chance.random() < 0.3:
            floor = chance.randint(found.applied_index, found.last_index)
            writes.append(TruncateLog(GROUP, floor + 1))
        entries = (command(floor + i, chance.randbytes(5)) for i in range(1, chance.randint(2, 5)))
        writes.append(append(*entries))
        if chance.random() < 0.5:
            effects = [effect() for _ in range(chance.randint(0, 9))]
            writes.append(apply(found.applied_index + 1, *effects))
        start, end, back = key(), key(), chance.random() < 0.5
        restart = chance.random() < 0.05
        answers = []
        for machine in machines:
            machine.store.write(writes)
            store = machine.restart() if restart else machine.store
            rows = list(store.view(GROUP).scan(start, end, reverse=back))
            everything = list(store.view(GROUP).scan(*EVERYTHING))
            answers.append(
                (store.load(GROUP), store.applied(GROUP), all_entries(store), rows, everything)
            )
        assert answers[0] == answers[1]
    for machine in machines:
        machine.store.close()
