"""A replica that is removed leaves nothing behind, and nothing that it had comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_machines import BIRTH, GROUP, KINDS, OTHER, REPLICA, Machine, append, apply, machine_on
from mailraft.node.engine import keys
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import Entry, EntryKind, Put

KEY = b"\0key"


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """Each kind of disk in turn, with two groups that have an applied entry and a body each."""
    found = machine_on(request.param, tmp_path)
    for group in (GROUP, OTHER):
        found.store.create_group(group, REPLICA, BIRTH)
        entry = Entry(2, 1, EntryKind.COMMAND, b"payload", (b"body",))
        found.store.write([append(entry, group=group)])
        found.store.write([apply(2, Put(KEY, b"value"), group=group)])
    yield found
    found.store.close()


def rows(store: Store, group: int) -> int:
    """How many rows of the log, the bodies and the state are of a group."""
    prefix = keys.U32.pack(group)
    return sum(
        key.startswith(prefix)
        for family in (keys.LOG, keys.BODY, keys.STATE)
        for key, _ in store._backend.scan(family, b"", b"\xff" * 30)
    )


def test_a_removed_replica_leaves_no_row_and_its_neighbour_is_whole(machine: Machine) -> None:
    """And removing it again is nothing."""
    store = machine.store
    store.remove_group(GROUP)
    store.remove_group(GROUP)
    assert rows(store, GROUP) == 0
    assert [group for group, _ in store.groups()] == [OTHER]
    assert store.view(OTHER).get(KEY) == b"value"
    assert store.body(OTHER, 2, 0) == b"body"


def test_a_snapshot_that_comes_for_a_removed_replica_leaves_nothing(machine: Machine) -> None:
    """Its rows were in already: they go, and nothing else happens."""
    store = machine.store
    generation = store.burn_generation(GROUP)
    sink = store.receive(GROUP, generation)
    store.remove_group(GROUP)
    store.drop_generation(GROUP, generation)
    sink.discard()
    assert rows(store, GROUP) == 0
    assert store.view(OTHER).get(KEY) == b"value"


def test_who_still_reads_a_removed_replica_reads_on(machine: Machine) -> None:
    """Its rows go with its last reader, or at the next start."""
    view = machine.store.view(GROUP)
    machine.store.remove_group(GROUP)
    assert view.get(KEY) == b"value"
    machine.store.flush()
    store = machine.restart()
    assert rows(store, GROUP) == 0
    assert rows(store, OTHER) > 0


@pytest.mark.parametrize("restart", [True, False])
def test_the_next_replica_of_the_group_begins_empty(machine: Machine, restart: bool) -> None:
    """Under a generation that was never used, while the rows before it may still be read."""
    store = machine.store
    view = store.view(GROUP)
    store.remove_group(GROUP)
    store.flush()
    if restart:
        store = machine.restart()
    store.create_group(GROUP, REPLICA + 1, BIRTH)
    assert store.view(GROUP).get(KEY) is None
    assert store.body(GROUP, 2, 0) is None
    assert store.load(GROUP).last_index == 1
    if not restart:
        assert view.get(KEY) == b"value"
