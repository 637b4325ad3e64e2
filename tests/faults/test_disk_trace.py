"""What a power cut leaves, from transcripts of strace."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.disk_trace import Dropped, PowerCut

OPEN = '7 openat(AT_FDCWD</x>, "{f}", O_WRONLY|O_CREAT|O_CLOEXEC, 0644) = 9<{f}>\n'
NAMED = "7 fsync(4<{d}>) = 0\n"
TEN = '7 write(9<{f}>, ""..., 10) = 10\n'
SYNC = "8 fdatasync(9<{f}>) = 0\n"


def left_of(folder: Path, transcript: str, name: str = "000004.log", size: int = 20) -> int | None:
    """The size of a file that was new and is 20 bytes long now, after a cut; None: it is gone."""
    cut = PowerCut(folder)
    path = folder / name
    path.write_bytes(b"x" * size)
    cut.follow(transcript.format(f=path, d=folder).splitlines())
    cut.cut()
    return path.stat().st_size if path.exists() else None


@pytest.mark.parametrize(
    ("why", "transcript", "left"),
    [
        ("synced in between", OPEN + TEN + SYNC + NAMED + TEN, 10),
        ("never synced", OPEN + NAMED + TEN + TEN, 0),
        ("no name", OPEN + TEN + TEN + SYNC, None),
        ("the name came after the folder's sync", NAMED + OPEN + TEN + TEN + SYNC, None),
        ("the sync failed", OPEN + NAMED + TEN + SYNC + TEN + "8 fsync(9<{f}>) = -1 EIO (x)\n", 10),
        (
            "written while the sync ran",
            OPEN
            + NAMED
            + TEN
            + "8 fdatasync(9<{f}> <unfinished ...>\n"
            + TEN
            + "8 <... fdatasync resumed>) = 0\n",
            10,
        ),
        (
            "the sync did not come back",
            OPEN + NAMED + TEN + SYNC + TEN + "8 fdatasync(9<{f}> <unfinished ...>\n"
            "8 +++ killed by SIGKILL +++\n",
            10,
        ),
        (
            "another thread's write in two lines",
            OPEN
            + NAMED
            + '6 write(9<{f}>, ""..., 10 <unfinished ...>\n'
            + SYNC
            + "6 <... write resumed>) = 10\n"
            + TEN
            + SYNC,
            20,
        ),
    ],
)
def test_what_is_left(tmp_path: Path, why: str, transcript: str, left: int | None) -> None:
    """Only what was written before a sync began that ended well, under a name that was synced."""
    assert left_of(tmp_path, transcript) == left, why


def test_what_was_there_before_stays_and_a_place_written_over_is_torn(tmp_path: Path) -> None:
    """The one slot of two that was being written is lost, the other is whole."""
    path = tmp_path / "watermark"
    path.write_bytes(b"a" * 8)
    cut = PowerCut(tmp_path)
    write = f'7 pwrite64(9<{path}>, ""..., 4, {{}}) = 4\n'
    cut.follow((write.format(0) + SYNC.format(f=path) + write.format(4)).splitlines())
    path.write_bytes(b"bbbbcccc")
    assert cut.cut() == Dropped(torn=1)
    assert path.read_bytes() == b"bbbb\0\0\0\0"


def test_a_rename_takes_a_whole_file_along(tmp_path: Path) -> None:
    """CURRENT: made under another name, synced, moved over the old one."""
    current, fresh = tmp_path / "CURRENT", tmp_path / "000007.dbtmp"
    current.write_bytes(b"x" * 10)
    cut = PowerCut(tmp_path)
    moved = OPEN + TEN + SYNC + f'7 rename("{fresh}", "{current}") = 0\n'
    cut.follow(moved.format(f=fresh).splitlines())
    assert cut.cut() == Dropped()
    assert current.stat().st_size == 10


def test_a_file_made_unseen_fails_the_cut(tmp_path: Path) -> None:
    """A transcript with holes proves nothing."""
    with pytest.raises(AssertionError, match="made unseen"):
        left_of(tmp_path, "")
