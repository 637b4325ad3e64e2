"""A damaged store is kept aside until what it held is whole again, and no second one with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mailraft.node.engine import keys, quarantine
from mailraft.node.engine.errors import CorruptionError, FileDamagedError, LostWritesError
from mailraft.node.engine.options import StoreOptions
from mailraft.node.engine.rocks import RocksBackend
from mailraft.node.engine.store import COPY_FOLDER, Store
from mailraft.node.interfaces import Configuration, GroupId, replica_id
from mailraft.node.rebuild import FileDamage, open_store

THREE = Configuration(1, tuple(replica_id(node, 1) for node in (1, 2, 3)))
TWO = Configuration(1, (replica_id(1, 1), replica_id(2, 1)))
NAMES = ("watermark", "db")


class View:
    """What a node knows of its groups."""

    cluster_id, node = "c1", 1

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def groups(self) -> Sequence[tuple[GroupId, Configuration]]:
        return [(7, self._configuration)]


def opened(folder: Path, configuration: Configuration = THREE) -> Store:
    """As a node opens it at its start."""
    return open_store(folder, View(configuration), StoreOptions())  # type: ignore[arg-type]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A node's folder whose CURRENT is damaged."""
    store = opened(tmp_path)
    store.create_group(7, replica_id(1, 1), THREE)
    store.close()
    (tmp_path / "db" / "CURRENT").write_bytes(b"MANIFESU-000001\n")
    return tmp_path


def test_a_store_that_does_not_open_is_set_aside(damaged: Path) -> None:
    """The node starts with an empty one, and all of the old one is kept."""
    store = opened(damaged)
    assert store.groups() == []
    store.close()
    kept = damaged / quarantine.QUARANTINE_FOLDER
    assert (kept / "db" / "CURRENT").read_bytes() == b"MANIFESU-000001\n"
    assert (kept / "watermark").exists()
    assert "does not open" in (quarantine.kept(damaged) or "")
    assert quarantine.marked(damaged) is None
    opened(damaged).close()  # the new one is well


def test_without_enough_others_it_is_refused(damaged: Path) -> None:
    """With two replicas the other may not have all that was acknowledged: nothing is moved."""
    for _ in range(2):
        with pytest.raises(FileDamagedError, match="does not open"):
            opened(damaged, TWO)
    assert not (damaged / quarantine.QUARANTINE_FOLDER).exists()


def test_lost_writes_count_as_damage(tmp_path: Path) -> None:
    """A log that ends too early is no smaller fault than one that does not open."""
    opened(tmp_path).close()
    (tmp_path / "watermark").unlink()
    with pytest.raises(LostWritesError):
        opened(tmp_path, TWO)
    opened(tmp_path).close()
    assert quarantine.kept(tmp_path) is not None


def test_damage_to_a_store_that_is_being_filled_is_for_an_operator(damaged: Path) -> None:
    """What was set aside first is never given up for it, nor is it moved a second time."""
    opened(damaged).close()
    (damaged / "db" / "CURRENT").write_bytes(b"?")
    for _ in range(2):
        with pytest.raises(CorruptionError, match="Replace the disk"):
            opened(damaged)
    kept = damaged / quarantine.QUARANTINE_FOLDER / "db" / "CURRENT"
    assert kept.read_bytes() == b"MANIFESU-000001\n"


@pytest.mark.parametrize("cut_off_before", ["watermark", "db", quarantine.DAMAGED_FILE])
def test_setting_aside_goes_on_where_it_was_cut_off(
    damaged: Path, cut_off_before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any of its steps: nothing is left out, and nothing is taken for a new store."""
    quarantine.mark(damaged, "found")
    replace = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if self.name == cut_off_before:
            raise OSError("cut off")
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", cut)
        with pytest.raises(OSError, match="cut off"):
            quarantine.set_aside(damaged, NAMES)
    opened(damaged).close()
    kept = damaged / quarantine.QUARANTINE_FOLDER
    assert {path.name for path in kept.iterdir()} == {*NAMES, quarantine.DAMAGED_FILE}
    assert quarantine.kept(damaged) == "found"


def test_what_was_kept_goes_as_a_whole(damaged: Path) -> None:
    """Also when its removal is cut off: the next start takes up the rest."""
    opened(damaged).close()
    left = damaged / quarantine.GONE_FOLDER
    left.mkdir()
    (left / "half").touch()
    quarantine.drop(damaged)
    assert quarantine.kept(damaged) is None
    left.mkdir()
    opened(damaged).close()
    assert not left.exists()


def test_a_copy_is_kept_before_a_part_is_given_up(tmp_path: Path) -> None:
    """It is a store of its own with all that was there, and opens."""
    store = opened(tmp_path)
    store.create_group(7, replica_id(1, 1), THREE)
    quarantine.keep_copy(tmp_path, "shard 7", store.copy_to)
    store.remove_group(7)
    store.close()
    assert quarantine.kept(tmp_path) == "shard 7"
    copy = RocksBackend(tmp_path / quarantine.QUARANTINE_FOLDER / COPY_FOLDER, StoreOptions())
    assert copy.get(keys.META, keys.group_record(7)) is not None
    copy.close()


def test_a_damaged_file_ends_the_process_once(tmp_path: Path) -> None:
    """The first one that is met is marked and told; where nobody else has the data, only told."""
    ended: list[FileDamagedError] = []
    damage = FileDamage(tmp_path, View(THREE), ended.append)  # type: ignore[arg-type]
    for text in ("first", "second"):
        damage.found(FileDamagedError(text))
    assert [str(error) for error in ended] == ["first"]
    assert quarantine.marked(tmp_path) == "first"

    alone = tmp_path / "alone"
    alone.mkdir()
    damage = FileDamage(alone, View(TWO), ended.append)  # type: ignore[arg-type]
    damage.found(FileDamagedError("third"))
    assert len(ended) == 1
    assert quarantine.marked(alone) is None
    assert damage.reason == "third"
