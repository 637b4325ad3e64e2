"""What a store promises, held by RocksDB and by the simulator's disk alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_machines import (
    BIRTH,
    EVERYTHING,
    GROUP,
    KINDS,
    NO_LIMIT,
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
from mailraft.node.engine import keys, records
from mailraft.node.engine.checksum import entry_checksum
from mailraft.node.engine.errors import (
    GroupExistsError,
    InvalidWriteError,
    StoreClosedError,
    UnknownFormatError,
    UnknownGroupError,
)
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import (
    Configuration,
    Delete,
    DeleteRange,
    Entry,
    EntryKind,
    HardState,
    LogBase,
    LogCorruptError,
    Put,
    SaveHardState,
    StoredLog,
    TruncateLog,
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


# ---- groups --------------------------------------------------------------------------------------


def test_a_new_group_has_an_empty_log_behind_its_birth(store: Store) -> None:
    """A new replica starts behind entry 1 of term 0, in term 0, having voted for nobody."""
    assert store.load(GROUP) == StoredLog(
        replica=REPLICA,
        base=LogBase(1, 0, BIRTH),
        hard_state=HardState(0, 0),
        last_index=1,
        last_term=0,
        applied_index=1,
    )
    assert store.applied(GROUP) == (1, 0, bytes(16))
    assert not all_entries(store)


def test_creating_the_same_group_again_changes_nothing(store: Store) -> None:
    """A retried create_group keeps the log that is there."""
    store.write([append(command(2)), SaveHardState(GROUP, HardState(3, REPLICA))])
    store.create_group(GROUP, REPLICA, BIRTH)
    assert store.load(GROUP).last_index == 2
    assert store.load(GROUP).hard_state == HardState(3, REPLICA)


def test_another_replica_of_a_group_is_refused(store: Store) -> None:
    """A group that lives here under one replica id is never taken over by another."""
    with pytest.raises(GroupExistsError, match="group 7"):
        store.create_group(GROUP, replica_id(1, 2), BIRTH)
    with pytest.raises(GroupExistsError, match="configuration 2"):
        store.create_group(GROUP, REPLICA, Configuration(2, BIRTH.voters))
    assert store.groups() == [(GROUP, REPLICA)]


def test_groups_are_listed_by_number(machine: Machine) -> None:
    """Every group is found again after a restart, the highest possible number too."""
    for group in (2**32 - 1, 0, 300, 0x7B000000):
        machine.store.create_group(group, replica_id(1, group + 1), BIRTH)
    found = machine.restart().groups()
    assert [group for group, _ in found] == [0, GROUP, 300, 0x7B000000, 2**32 - 1]
    assert found[2] == (300, replica_id(1, 301))


def test_a_group_that_is_not_here_is_an_error(store: Store) -> None:
    """Nothing is read from or written to a group without a replica here."""
    with pytest.raises(UnknownGroupError):
        store.load(OTHER)
    with pytest.raises(UnknownGroupError):
        store.log(OTHER)
    with pytest.raises(UnknownGroupError):
        store.view(OTHER)
    with pytest.raises(UnknownGroupError):
        store.write([append(command(2)), append(command(2), group=OTHER)])
    assert store.load(GROUP).last_index == 1


def test_groups_do_not_see_each_other(store: Store) -> None:
    """Log, bodies, state and hard state of one group are not those of its neighbours."""
    store.create_group(OTHER, replica_id(1, 9), BIRTH)
    for group in (GROUP, OTHER):
        name = b"%d" % group
        store.write(
            [
                append(command(2, b"body of " + name, payload=name), group=group),
                SaveHardState(group, HardState(group)),
                apply(2, Put(b"key", name), group=group),
            ]
        )
    store.write([append(command(3)), TruncateLog(GROUP, 3)])
    store.write([apply(4, DeleteRange(*EVERYTHING), Delete(b"key"))])

    assert [entry.payload for entry in all_entries(store, OTHER)] == [b"8"]
    assert store.body(OTHER, 2, 0) == b"body of 8"
    assert store.load(OTHER).hard_state == HardState(OTHER)
    assert store.applied(OTHER)[0] == 2
    assert store.view(OTHER).get(b"key") == b"8"
    assert store.view(GROUP).get(b"key") is None


# ---- the log -------------------------------------------------------------------------------------


def test_entries_come_back_as_they_were_written(machine: Machine) -> None:
    """Kind, term, payload and bodies survive a restart, byte for byte."""
    configuration = Configuration(2, (REPLICA,), (REPLICA + 1,))
    record = records.encode_configuration(configuration).SerializeToString()
    written = (
        Entry(2, 1, EntryKind.NOOP),
        command(3, bytes(range(256)) * 3, b"", b"\0", payload=b"\0\xff" * 500),
        Entry(4, 2, EntryKind.CONFIGURATION, record),
        command(5, b"", term=2, payload=b""),
    )
    machine.store.write([append(*written[:3]), append(written[3])])
    assert tuple(all_entries(machine.store)) == written
    store = machine.restart()
    assert tuple(all_entries(store)) == written
    assert store.load(GROUP).last_index == 5
    assert store.load(GROUP).last_term == 2
    assert store.load(GROUP).configurations == ((4, configuration),)


def test_bodies_of_three_mebibytes_are_kept_whole(machine: Machine) -> None:
    """The largest message comes back from the log and by its position."""
    body = bytes(i * i % 251 for i in range(1024)) * 3 * 1024
    machine.store.write([append(command(2, b"small", body), command(3, body))])
    store = machine.restart()
    assert store.body(GROUP, 2, 1) == body
    assert [len(entry.bodies) for entry in all_entries(store)] == [2, 1]
    assert store.body(GROUP, 2, 2) is None
    assert store.body(GROUP, 4, 0) is None


def test_entries_outside_the_log_answer_nothing(store: Store) -> None:
    """Asking for more than there is gets what there is."""
    store.write([append(command(2), command(3), command(4))])
    log = store.log(GROUP)
    assert [e.index for e in log.entries(0, 3, NO_LIMIT)] == [2, 3]
    assert [e.index for e in log.entries(3, 99, NO_LIMIT)] == [3, 4]
    assert not log.entries(5, 99, NO_LIMIT)
    assert not log.entries(0, 1, NO_LIMIT)
    assert not log.entries(4, 3, NO_LIMIT)
    assert [log.term(index) for index in range(6)] == [None, None, 1, 1, 1, None]


def test_entries_are_cut_by_bytes_but_never_to_none(store: Store) -> None:
    """The entry that reaches the limit is the last one, and one always comes."""
    store.write([append(*(command(i, bytes(1000)) for i in range(2, 10)))])
    log = store.log(GROUP)
    size_bytes = command(2, bytes(1000)).size_bytes
    for limit_bytes, count in ((0, 1), (1, 1), (size_bytes, 1), (size_bytes + 1, 2), (5000, 5)):
        assert len(log.entries(2, 9, limit_bytes)) == count


def test_a_reader_follows_the_log(store: Store) -> None:
    """A LogReader sees what is appended and truncated after it was made."""
    log = store.log(GROUP)
    store.write([append(command(2), command(3))])
    assert log.term(3) == 1
    store.write([TruncateLog(GROUP, 3)])
    assert log.term(3) is None
    assert [e.index for e in log.entries(2, 9, NO_LIMIT)] == [2]


def test_truncation_removes_entries_and_bodies_for_good(machine: Machine) -> None:
    """After a truncation nothing of the removed entries is left, and the rest is."""
    machine.store.write([append(*(command(i, b"a%d" % i, b"b%d" % i) for i in range(2, 8)))])
    machine.store.write([TruncateLog(GROUP, 5)])
    for store in lives(machine):
        assert [e.index for e in all_entries(store)] == [2, 3, 4]
        assert store.load(GROUP).last_index == 4
        assert store.body(GROUP, 4, 1) == b"b4"
        assert store.body(GROUP, 5, 0) is None
        assert store.body(GROUP, 7, 1) is None


def test_truncating_beyond_the_end_changes_nothing(store: Store) -> None:
    """Removing what is not there is no error, and moves no end."""
    store.write([append(command(2)), TruncateLog(GROUP, 9)])
    assert [e.index for e in all_entries(store)] == [2]
    store.write([append(command(3))])
    assert store.load(GROUP).last_index == 3


def test_entries_replaced_in_one_write_are_the_new_ones(machine: Machine) -> None:
    """Truncate and append of the same indexes in one write end with the appended entries."""
    machine.store.write([append(*(command(i, b"old", b"old too") for i in range(2, 6)))])
    machine.store.write(
        [TruncateLog(GROUP, 3), append(command(3, b"new", term=2), command(4, b"new", term=2))]
    )
    for store in lives(machine):
        assert [(e.index, e.term, e.bodies) for e in all_entries(store)] == [
            (2, 1, (b"old", b"old too")),
            (3, 2, (b"new",)),
            (4, 2, (b"new",)),
        ]
        assert store.body(GROUP, 3, 1) is None
        assert store.body(GROUP, 5, 0) is None


def test_a_gap_or_an_overlap_in_the_log_is_refused(store: Store) -> None:
    """A write that would leave a hole, or cover an entry, writes nothing at all."""
    store.write([append(command(2), command(3))])
    for wrong in ((command(5),), (command(3),), (command(4), command(6))):
        with pytest.raises(InvalidWriteError, match="group 7: appends entry"):
            store.write([SaveHardState(GROUP, HardState(9)), append(*wrong)])
    assert store.load(GROUP).last_index == 3
    assert store.load(GROUP).hard_state == HardState(0)


def test_applied_entries_are_never_truncated(store: Store) -> None:
    """What was applied was committed, so no leader may remove it."""
    store.write([append(command(2), command(3)), apply(2)])
    for from_index in (0, 1, 2):
        with pytest.raises(InvalidWriteError, match="2 is committed"):
            store.write([TruncateLog(GROUP, from_index)])
    store.write([TruncateLog(GROUP, 3)])
    assert store.load(GROUP).last_index == 2


def test_a_changed_entry_is_detected(machine: Machine) -> None:
    """An entry whose stored term, payload or body was changed is never handed out."""
    store = machine.store
    store.write([append(command(2), command(3, b"body"), command(4))])
    key = keys.log_entry(GROUP, 3)
    good = store._backend.get(keys.LOG, key)
    assert good is not None
    for at in range(len(good)):
        machine.overwrite(keys.LOG, key, good[:at] + bytes((good[at] ^ 4,)) + good[at + 1 :])
        with pytest.raises((LogCorruptError, UnknownFormatError)):
            store.log(GROUP).entries(2, 4, NO_LIMIT)
    machine.overwrite(keys.LOG, key, good)
    assert len(all_entries(store)) == 3
    machine.overwrite(keys.BODY, keys.body(GROUP, 1, 3, 0), b"Body")
    with pytest.raises(LogCorruptError, match="group 7, log entry 3: its checksum"):
        all_entries(store)


def test_a_missing_entry_or_body_is_detected(machine: Machine) -> None:
    """A hole in the log is an error that names it, at its end too."""
    store = machine.store
    store.write([append(command(2), command(3, b"one", b"two"), command(4))])
    machine.overwrite(keys.BODY, keys.body(GROUP, 1, 3, 1), None)
    with pytest.raises(LogCorruptError, match="group 7, log entry 3: its body 1 is missing"):
        all_entries(store)
    machine.overwrite(keys.LOG, keys.log_entry(GROUP, 3), None)
    with pytest.raises(LogCorruptError, match="group 7, log entry 3: it is missing"):
        all_entries(store)
    with pytest.raises(LogCorruptError, match="group 7, log entry 3: it is missing"):
        store.log(GROUP).term(3)
    machine.overwrite(keys.LOG, keys.log_entry(GROUP, 4), None)
    with pytest.raises(LogCorruptError, match="group 7, log entry 4: it is missing"):
        store.log(GROUP).entries(4, 4, NO_LIMIT)


def test_a_log_that_ends_before_what_was_applied_is_refused(machine: Machine) -> None:
    """A replica whose state is ahead of its log does not start."""
    machine.store.write([append(command(2), command(3)), apply(3)])
    machine.overwrite(keys.LOG, keys.log_entry(GROUP, 3), None)
    with pytest.raises(LogCorruptError, match="log ends at 2"):
        machine.restart().load(GROUP)


def test_a_log_without_its_first_entry_is_refused(machine: Machine) -> None:
    """A hole right behind the base is seen at the start."""
    machine.store.write([append(command(2), command(3))])
    machine.overwrite(keys.LOG, keys.log_entry(GROUP, 2), None)
    with pytest.raises(LogCorruptError, match="log entry 2: it is missing"):
        machine.restart().load(GROUP)


def test_the_checksum_is_the_documented_one() -> None:
    """CRC-32C over index, term and kind little-endian, payload, and the bodies in order."""
    entry = Entry(1, 2, EntryKind.COMMAND, b"payload", (b"one", b"two"))
    plain = b"\1" + bytes(7) + b"\2" + bytes(7) + b"\2\0\0\0" + b"payloadonetwo"
    crc = 0xFFFFFFFF
    for byte in plain:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert entry_checksum(entry) == crc ^ 0xFFFFFFFF


# ---- hard state ----------------------------------------------------------------------------------


def test_term_and_vote_survive_a_restart(machine: Machine) -> None:
    """The last saved term and vote come back."""
    machine.store.write([SaveHardState(GROUP, HardState(1, REPLICA))])
    machine.store.write([SaveHardState(GROUP, HardState(5)), SaveHardState(GROUP, HardState(5, 9))])
    assert machine.restart().load(GROUP).hard_state == HardState(5, 9)


def test_terms_never_fall_and_votes_never_change(store: Store) -> None:
    """A lower term, or a second vote in one term, is refused (Raft 5.1, 5.2)."""
    store.write([SaveHardState(GROUP, HardState(5, 9))])
    for wrong in (HardState(4, 9), HardState(5, 8), HardState(5, 0)):
        with pytest.raises(InvalidWriteError):
            store.write([SaveHardState(GROUP, wrong)])
    store.write([SaveHardState(GROUP, HardState(5, 9)), SaveHardState(GROUP, HardState(6))])
    assert store.load(GROUP).hard_state == HardState(6)


# ---- sequence numbers and the end ----------------------------------------------------------------


def test_flush_answers_what_it_made_durable(store: Store) -> None:
    """A flush after a write answers at least the write's sequence number."""
    first = store.write([append(command(2))])
    assert store.flush() >= first
    second = store.write([append(command(3)), apply(2, Put(b"a", b"b"))])
    assert second > first
    assert store.sequence == second
    assert store.flush() == second
    assert store.write([]) == second


def test_sequence_numbers_go_on_after_a_restart(machine: Machine) -> None:
    """A restart never answers a sequence number below one that was durable."""
    machine.store.write([append(command(2))])
    durable = machine.store.flush()
    assert machine.restart().sequence >= durable


def test_a_closed_store_says_so(store: Store) -> None:
    """Whoever still holds a log, a view or a scan of a closed store gets a clear error."""
    store.write([append(command(2)), apply(2, Put(b"a", b"b"))])
    log, view = store.log(GROUP), store.view(GROUP)
    store.close()
    store.close()
    with pytest.raises(StoreClosedError):
        log.entries(2, 2, NO_LIMIT)
    with pytest.raises(StoreClosedError):
        view.get(b"a")
    with pytest.raises(StoreClosedError):
        view.scan(b"a", b"b")
    with pytest.raises(StoreClosedError):
        store.write([append(command(3))])
    with pytest.raises(StoreClosedError):
        store.flush()


def test_disk_space_is_known(store: Store) -> None:
    """Free space and the store's own size are plausible numbers of bytes."""
    usage = store.disk_usage()
    assert 0 < store.free_bytes() <= usage.total_bytes
    assert 0 <= usage.used_ratio < 1
    before = store.approximate_bytes()
    store.write([append(command(2, bytes(range(256)) * 4096))])
    store.flush()
    assert store.approximate_bytes() - before >= 1024 * 1024
