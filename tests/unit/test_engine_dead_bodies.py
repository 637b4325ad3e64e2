"""Bodies that the state machine removes: gone at once, or when their entry has left the log."""

from pathlib import Path

import pytest

from engine_machines import BIRTH, GROUP, KINDS, all_entries, append, apply, command, machine_on
from mailraft.node.engine.checksum import chain_digest
from mailraft.node.interfaces import CompactLog, DeleteBody, LogBase, Put


def base(index: int) -> CompactLog:
    """Compaction up to an entry."""
    return CompactLog(GROUP, LogBase(index, 1, BIRTH))


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_in_the_log_stays_until_compaction(tmp_path: Path, kind: str) -> None:
    """Its entry is read whole until then, also after a restart; then it is gone and its sisters
    are not.
    """
    store = machine_on(kind, tmp_path).store
    store.write([append(command(2, b"one", b"two"), command(3, b"three"))])
    store.write([apply(2, Put(b"k", b"v")), apply(3, DeleteBody(2, 0), DeleteBody(3, 0))])
    assert [entry.bodies for entry in all_entries(store)] == [(b"one", b"two"), (b"three",)]
    store.write([base(2)])
    assert store.body(GROUP, 2, 0) is None
    assert store.body(GROUP, 2, 1) == b"two"
    assert store.body(GROUP, 3, 0) == b"three"
    assert [entry.bodies for entry in all_entries(store)] == [(b"three",)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_behind_the_log_goes_at_once(tmp_path: Path, kind: str) -> None:
    """Nothing else reads it any more."""
    store = machine_on(kind, tmp_path).store
    store.write([append(command(2, b"one"), command(3))])
    store.write([apply(2), base(2), apply(3, DeleteBody(2, 0))])
    assert store.body(GROUP, 2, 0) is None


@pytest.mark.parametrize("kind", KINDS)
def test_waiting_bodies_outlive_a_restart(tmp_path: Path, kind: str) -> None:
    """What waits for compaction is on disk, beside the state."""
    machine = machine_on(kind, tmp_path)
    machine.store.write([append(command(2, b"one"), command(3))])
    machine.store.write([apply(2), apply(3, DeleteBody(2, 0))])
    machine.store.flush()
    store = machine.restart()
    store.write([base(3)])
    assert store.body(GROUP, 2, 0) is None


def test_a_removed_body_counts_in_the_digest() -> None:
    """Replicas that remove different bodies differ."""
    digests = {
        chain_digest(bytes(16), effects)
        for effects in ((), (DeleteBody(1, 0),), (DeleteBody(0, 1),), (DeleteBody(1, 1),))
    }
    assert len(digests) == 4
