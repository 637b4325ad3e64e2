"""What a power cut would leave of a node's folder: told by strace, then done to the folder.

strace -f -y shows every write, sync and change of names. Of each file only what was written before
a sync of it began, and that ended well, is certain; its name is once its folder was synced too.
`PowerCut.cut` leaves that and no more:

- bytes behind the synced length are gone;
- a place that was written over and not synced is torn (zeros);
- a file whose name was never synced is gone.

As it is, for lack of what was there before: names that were moved or removed stay so. Written with
mmap or copy_file_range would stay unseen: nothing here does that, and a file whose making was not
seen fails the cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

CALLS = (
    "openat,write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,"
    "rename,renameat,renameat2,unlink,unlinkat,link,linkat"
)
_LINE = re.compile(r"(?P<thread>\d+) +(?P<text>.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed> ?(?P<rest>.*)")
_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>\d+)(?:<(?P<opened>.*)>)?")
_BEGUN = re.compile(r"f(?:data)?sync\(\d+<(?P<path>.*?)>")
_FD = re.compile(r"\d+<(?P<path>.*?)>, (?P<rest>.*)")
_PATH = re.compile(r'"(?P<path>[^"]*)"')
_UNFINISHED = " <unfinished ...>"
# RocksDB's text log, and its lock: nobody reads them.
_UNREAD = re.compile(r"LOG(\.old\..*)?|LOCK")


@dataclass(eq=False, slots=True)
class TracedFile:
    """written, synced: up to which byte. torn: places below `synced` that were written again."""

    written: int = 0
    synced: int = 0
    named: bool = False  # for good
    torn: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a cut took: bytes behind the last sync, places torn, files gone."""

    bytes: int = 0
    torn: int = 0
    files: int = 0

    def __add__(self, other: Dropped) -> Dropped:
        return Dropped(self.bytes + other.bytes, self.torn + other.torn, self.files + other.files)


class PowerCut:
    """Made before a node starts: what its folder holds then is on disk. Then fed the transcript."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._files = {
            path: TracedFile(size, size, named=True)
            for path in _files_in(self._folder)
            for size in [path.stat().st_size]
        }
        self._unfinished: dict[str, tuple[str, Callable[[], None]]] = {}  # by thread

    def follow(self, lines: Iterable[str]) -> None:
        """Take in a transcript, in its order."""
        for line in lines:
            seen = _LINE.fullmatch(line.rstrip("\n"))
            if seen is None:
                continue
            thread, text = seen["thread"], seen["text"]
            resumed = _RESUMED.fullmatch(text)
            if resumed is not None:
                begun, certain = self._unfinished.pop(thread, ("", _nothing))
                self._ended(begun + resumed["rest"], certain)
            elif text.endswith(_UNFINISHED):
                begun = text.removesuffix(_UNFINISHED)
                self._unfinished[thread] = begun, self._sync_begins(begun)
            else:
                self._ended(text, self._sync_begins(text))

    def cut(self) -> Dropped:
        """Do it to the folder, whose node is dead."""
        dropped = Dropped()
        for path in _files_in(self._folder):
            file = self._files.get(path)
            assert file is not None, f"{path} was made unseen"
            size = path.stat().st_size
            counted = not _UNREAD.fullmatch(path.name)
            if not file.named:
                path.unlink()
                dropped += Dropped(bytes=size * counted, files=int(counted))
                continue
            kept = min(size, file.synced)
            os.truncate(path, kept)
            with path.open("r+b") as torn:
                for start, end in file.torn:
                    torn.seek(start)
                    torn.write(bytes(max(0, min(end, kept) - start)))
            dropped += Dropped((size - kept) * counted, len(file.torn))
        return dropped

    # ---- inside ----------------------------------------------------------------------------------

    def _sync_begins(self, text: str) -> Callable[[], None]:
        """What is certain once the sync that begins here has succeeded."""
        seen = _BEGUN.match(text)
        if seen is None:
            return _nothing
        path = Path(seen["path"])
        inside = [file for name, file in self._files.items() if name.parent == path]
        file = self._files.get(path)
        if file is None:
            return partial(_name, inside)
        written, torn = file.written, list(file.torn)

        def certain() -> None:
            file.synced = max(file.synced, min(written, file.written))
            file.torn = [place for place in file.torn if place not in torn]

        return certain

    def _ended(self, text: str, certain: Callable[[], None]) -> None:
        call = _CALL.match(text)
        if call is None:  # failed, or cut short by the kill
            return
        name, arguments, result = call["name"], call["arguments"], int(call["result"])
        if name in {"fsync", "fdatasync"}:
            certain()
        elif name == "openat":
            if "O_CREAT" in arguments and call["opened"]:
                self._opened(Path(call["opened"]), truncated="O_TRUNC" in arguments)
        elif name.startswith(("rename", "unlink", "link")):
            self._names(name, [Path(each) for each in _PATH.findall(arguments)])
        else:
            self._wrote(name, arguments, result)

    def _opened(self, path: Path, *, truncated: bool) -> None:
        if not path.is_relative_to(self._folder):
            return
        file = self._files.setdefault(path, TracedFile())
        if truncated:
            file.written = file.synced = 0
            file.torn.clear()

    def _names(self, call: str, paths: list[Path]) -> None:
        source = paths[0]
        if not source.is_absolute() or not source.is_relative_to(self._folder):
            return
        if call.startswith("link"):
            # The same bytes under a second name, which is not certain yet.
            file = self._files[source]
            self._files[paths[1]] = TracedFile(file.written, file.synced)
            return
        file = self._files.pop(source, TracedFile())
        if call.startswith("rename"):
            # Whatever becomes of the move, a name that was there stays.
            file.named |= paths[1] in self._files
            self._files[paths[1]] = file

    def _wrote(self, call: str, arguments: str, count: int) -> None:
        seen = _FD.match(arguments)
        file = self._files.get(Path(seen["path"])) if seen is not None else None
        if file is None or seen is None:
            return
        if call == "ftruncate":
            file.written = int(seen["rest"])
            file.synced = min(file.synced, file.written)
            return
        start = file.written
        if call.startswith("pwrite"):
            start = int(seen["rest"].rpartition(", ")[2])
        if start < file.synced:
            file.torn.append((start, min(start + count, file.synced)))
        file.written = max(file.written, start + count)


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _name(files: list[TracedFile]) -> None:
    for file in files:
        file.named = True


def _nothing() -> None:
    """Of a call that makes nothing certain."""
