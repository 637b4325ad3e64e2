"""What reached the disk, and when: fsync and fdatasync of running processes, as strace sees them.

strace -f -y -ttt -T prints, one system call a line, or two where threads cross:

    4711 1750000000.100000 fdatasync(9</n1/data/db/000004.log>) = 0 <0.000500>
    4711 1750000000.200000 fdatasync(9</n1/data/db/000004.log> <unfinished ...>
    4712 1750000000.200100 fdatasync(9</n2/data/db/000004.log>) = 0 <0.000500>
    4711 1750000000.200700 <... fdatasync resumed>) = 0 <0.000700>
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ATTACH_DEADLINE_S = 30.0
POLL_S = 0.02
_LOG_SUFFIX = ".log"  # of RocksDB's write-ahead log; its own text log is called LOG

_LINE = re.compile(r"(?:\[pid +)?(?P<thread>\d+)\]? +(?P<time>\d+\.\d+) (?P<call>.*)")
_CALL = re.compile(r"f(?:data)?sync\(\d+<(?P<path>.*?)>(?P<rest>\).*| <unfinished \.\.\.>)")
_RESUMED = re.compile(r"<\.\.\. f(?:data)?sync resumed> ?(?P<rest>\).*)")
_SUCCEEDED = re.compile(r"\) += 0(?: \(DELAYED\))? <(?P<took>\d+\.\d+)>")


@dataclass(frozen=True, slots=True)
class Sync:
    """One sync of a file that succeeded; times as time.time() tells them."""

    path: Path
    began_s: float
    ended_s: float


def parse(transcript: str) -> list[Sync]:
    """Every sync that succeeded, in the order of their ends. Not what was seen in part only."""
    found: list[Sync] = []
    begun: dict[str, tuple[Path, float]] = {}  # by thread: what it waits for
    for line in transcript.splitlines():
        seen = _LINE.fullmatch(line)
        if seen is None:
            continue
        thread, now_s = seen["thread"], float(seen["time"])
        call, resumed = _CALL.fullmatch(seen["call"]), _RESUMED.fullmatch(seen["call"])
        if call is not None:
            begun[thread] = Path(call["path"]), now_s
        rest = call["rest"] if call is not None else resumed["rest"] if resumed is not None else ""
        if rest.startswith(")") and thread in begun:
            path, began_s = begun.pop(thread)
            succeeded = _SUCCEEDED.fullmatch(rest)
            if succeeded is not None:
                # The later of both: a line may be stamped when strace gets to it.
                found.append(Sync(path, began_s, max(now_s, began_s + float(succeeded["took"]))))
    return found


def synced_logs(
    syncs: Iterable[Sync], folders: Mapping[int, Path], sent_s: float, replied_s: float
) -> set[int]:
    """The nodes whose write-ahead log (in these folders) was synced after a request was sent, from
    the sync's beginning, and before its reply came, to the sync's end.
    """
    nodes = {folder: node for node, folder in folders.items()}
    return {
        nodes[sync.path.parent]
        for sync in syncs
        if sync.path.suffix == _LOG_SUFFIX
        and sync.path.parent in nodes
        and sent_s <= sync.began_s
        and sync.ended_s <= replied_s
    }


class CannotTraceError(Exception):
    """Says why."""


class Trace:
    """strace of running processes: `with Trace(pids, file) as trace`. They run on afterwards.

    delay_ms: every sync takes so much longer, so that who does not wait for it is seen not to.
    Raises CannotTraceError where strace is missing or must not look at other processes.
    """

    def __init__(self, pids: Iterable[int], transcript: Path, *, delay_ms: int = 0) -> None:
        self._pids, self._transcript, self._delay_ms = list(pids), transcript, delay_ms
        self._messages = transcript.with_suffix(".stderr")
        self._strace: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        program = shutil.which("strace")
        if program is None:
            raise CannotTraceError("strace is not installed")
        command = [program, "-f", "-y", "-ttt", "-T", "-e", "trace=fdatasync,fsync"]
        if self._delay_ms:
            command += ["-e", f"inject=fdatasync,fsync:delay_enter={self._delay_ms * 1000}"]
        command += ["-o", str(self._transcript)]
        for pid in self._pids:
            command += ["-p", str(pid)]
        with self._messages.open("wb") as messages:
            self._strace = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=messages)
        try:
            self._wait_attached()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def size_bytes(self) -> int:
        """Of what was seen until now."""
        return self._transcript.stat().st_size

    def syncs(self) -> list[Sync]:
        """What was seen until now. Calls that end at this very moment may be missing."""
        return parse(self._transcript.read_text("utf-8", "backslashreplace"))

    def _wait_attached(self) -> None:
        assert self._strace is not None
        until_s = time.monotonic() + ATTACH_DEADLINE_S
        while True:
            told = self._messages.read_text("utf-8", "replace")
            if all(f"Process {pid} attached" in told for pid in self._pids):
                return
            if self._strace.poll() is not None or time.monotonic() > until_s:
                raise CannotTraceError(f"strace cannot attach: {told.strip()}")
            time.sleep(POLL_S)

    def _stop(self) -> None:
        assert self._strace is not None
        self._strace.terminate()  # it lets go of the processes first
        self._strace.wait()
