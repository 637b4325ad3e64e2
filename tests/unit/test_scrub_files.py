"""A bit that changes in a file of a store is seen past RocksDB and its caches."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_machines import BIRTH, GROUP, REPLICA, append, apply, command
from mailraft.node.engine import log_blocks
from mailraft.node.engine.errors import CorruptionError, FileDamagedError, LostWritesError
from mailraft.node.engine.scrub_files import UNREAD, FileLook, Seen, files_of
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import Put

SEED, FLIPS = 7, 40
DRAWN = random.Random(SEED)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a running node's folder holds: tables, blobs, a log, and all that RocksDB adds."""
    folder = tmp_path_factory.mktemp("node")
    store = Store.open(folder, cluster_id="c1", node=1)
    store.create_group(GROUP, REPLICA, BIRTH)
    for index in range(2, 300):
        entry = command(index, DRAWN.randbytes(700))
        store.write([append(entry), apply(index, Put(b"row-%d" % index, b"value"))])
        if index == 200:
            for family in store._backend._families.values():  # type: ignore[attr-defined]
                family.flush()
    store.flush()
    store._watermark.record(store.sequence, force=True)  # not only within its next 100 ms
    copy = Path(shutil.copytree(folder, folder.with_name("image")))
    store.close()
    return copy


def looked(path: Path, before: Seen | None = None) -> FileLook:
    """A look at a file, to its end."""
    look = FileLook(path, before, settled_s=0.0)
    list(look.steps())
    return look


def flipped(path: Path, byte: int, bit: int) -> None:
    """Change it in place, as a disk would."""
    with path.open("r+b") as file:
        file.seek(byte)
        [value] = file.read(1)
        file.seek(byte)
        file.write(bytes((value ^ 1 << bit,)))


def bits_of(path: Path, count: int) -> Iterator[tuple[int, int]]:
    """All bits of a small file, else some."""
    bits = range(path.stat().st_size * 8)
    for at in bits if len(bits) <= count else DRAWN.sample(bits, count):
        yield divmod(at, 8)


def test_every_kind_of_file_is_looked_at(image: Path) -> None:
    """All that is in the folder, but for the lock and RocksDB's diary, which nothing reads."""
    kinds = {path.name.rstrip("0123456789").removesuffix("-") for path in files_of(image)}
    kinds = {name.lstrip("0123456789") for name in kinds}
    unread = {"OPTIONS", "IDENTITY", "rocksdict-config.json"}
    assert kinds == {".sst", ".blob", ".log", "MANIFEST", "CURRENT", "watermark"} | unread
    there = {path.name for path in (image / "db").iterdir()} | {"watermark"}
    assert there - {path.name for path in files_of(image)} == {"LOCK", "LOG"}


def test_what_is_whole_is_not_wrong(image: Path) -> None:
    """No false alarm, at the first look or later."""
    for path in files_of(image):
        first = looked(path)
        assert not first.wrong, path
        assert not looked(path, first.seen).wrong, path


def test_every_flipped_bit_is_seen(image: Path) -> None:
    """In any file, at any place: some of a large one, all of a small one."""
    for path in files_of(image):
        seen = looked(path).seen
        for byte, bit in bits_of(path, FLIPS if path.stat().st_size > 64 else 512):
            flipped(path, byte, bit)
            assert looked(path, seen).wrong, f"{path.name}: byte {byte}, bit {bit} (seed {SEED})"
            flipped(path, byte, bit)


def test_a_file_that_was_cut_is_seen(image: Path, tmp_path: Path) -> None:
    """Tables, blobs and the watermark lose nothing unseen."""
    for path in files_of(image):
        if path.suffix not in {".sst", ".blob"} and path.name != "watermark":
            continue
        copy = Path(shutil.copy(path, tmp_path / path.name))
        seen = looked(copy).seen
        os.truncate(copy, copy.stat().st_size - 1)
        assert looked(copy, seen).wrong, path


def test_a_log_that_is_being_written_is_not_wrong(image: Path, tmp_path: Path) -> None:
    """Its end may be half there. Once nothing was written to it for a while, it may not."""
    [log] = (image / "db").glob("*.log")
    copy = Path(shutil.copy(log, tmp_path / log.name))
    os.truncate(copy, copy.stat().st_size - 100)
    young = FileLook(copy, None)
    list(young.steps())
    assert not young.wrong
    assert looked(copy).wrong


def test_a_table_that_is_being_written_is_not_remembered(image: Path, tmp_path: Path) -> None:
    """Nor one that was touched a moment ago: what is remembered is final."""
    table = next((image / "db").glob("*.sst"))
    copy = Path(shutil.copy(table, tmp_path / table.name))
    young = FileLook(copy, None)
    list(young.steps())
    assert young.seen is None
    os.truncate(copy, copy.stat().st_size // 2)
    assert looked(copy).seen is None


def test_a_file_that_is_gone_is_not_wrong(tmp_path: Path) -> None:
    """Compaction removes files all the time."""
    look = looked(tmp_path / "000007.sst", Seen(1, 1, "0"))
    assert not look.wrong
    assert look.seen is None


def test_another_file_under_the_same_name_is_not_wrong(image: Path, tmp_path: Path) -> None:
    """CURRENT is replaced, not written over."""
    copy = Path(shutil.copy(image / "db" / "CURRENT", tmp_path / "CURRENT"))
    seen = looked(copy).seen
    fresh = tmp_path / "fresh"
    fresh.write_bytes(b"MANIFEST-000042\n")
    fresh.replace(copy)
    again = looked(copy, seen)
    assert not again.wrong
    assert again.seen != seen


@pytest.mark.parametrize("name", UNREAD)
def test_flips_in_what_nothing_reads_harm_nothing(image: Path, tmp_path: Path, name: str) -> None:
    """RocksDB's notes to itself: the store opens, and holds the same."""
    for byte, bit in list(bits_of(next((image / "db").glob(f"{name}*")), 12)):
        copy = Path(shutil.copytree(image, tmp_path / f"{byte}-{bit}"))
        flipped(next((copy / "db").glob(f"{name}*")), byte, bit)
        store = Store.open(copy, cluster_id="c1", node=1)
        assert store.load(GROUP).last_index == 299
        assert store.view(GROUP).get(b"row-299") == b"value"
        store.close()


def test_a_start_sees_each_flipped_bit_of_the_manifest(image: Path) -> None:
    """RocksDB takes a record whose length has changed for the end, and opens without the tables
    that are told of behind it. In the last record it is the end of one that was being written.
    """
    [manifest] = (image / "db").glob("MANIFEST-*")
    data, at, last = manifest.read_bytes(), 0, 0
    while at < len(data):
        last, at = at, at + 7 + int.from_bytes(data[at + 4 : at + 6], "little")
    assert last > 800
    for place in range(last * 8):
        byte, bit = divmod(place, 8)
        changed = bytearray(data)
        changed[byte] ^= 1 << bit
        assert log_blocks.damaged_block(bytes(changed)) == 0, f"byte {byte}, bit {bit}"
    for cut in range(last, len(data) + 1):
        assert log_blocks.damaged_block(data[:cut]) is None


def test_a_store_whose_manifest_would_end_early_does_not_open(image: Path, tmp_path: Path) -> None:
    """One bit of the length of a record."""
    copy = Path(shutil.copytree(image, tmp_path / "copy"))
    [manifest] = (copy / "db").glob("MANIFEST-*")
    data, at = manifest.read_bytes(), 0
    for _ in range(9):  # one that adds a table
        at += 7 + int.from_bytes(data[at + 4 : at + 6], "little")
    flipped(manifest, at + 5, 3)
    with pytest.raises(FileDamagedError):
        Store.open(copy, cluster_id="c1", node=1)
    flipped(manifest, at + 5, 3)
    Store.open(copy, cluster_id="c1", node=1).close()


@pytest.mark.parametrize("name", ["CURRENT", "MANIFEST-", "000"])
def test_flips_in_what_a_start_reads_are_found_by_it(
    image: Path, tmp_path: Path, name: str
) -> None:
    """CURRENT (all of its bits), the manifest and the log: the store does not open."""
    pattern = "*.log" if name == "000" else f"{name}*"
    [path] = (image / "db").glob(pattern)
    for byte, bit in bits_of(path, 128 if name == "CURRENT" else 12):
        copy = tmp_path / f"{byte}-{bit}"
        shutil.copytree(image, copy, copy_function=os.link)
        target = copy / "db" / path.name
        target.unlink()  # the link, not what it shares
        shutil.copy(path, target)
        flipped(target, byte, bit)
        with pytest.raises((CorruptionError, LostWritesError)):
            Store.open(copy, cluster_id="c1", node=1)
