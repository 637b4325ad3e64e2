"""The paths that users wait on, measured on 3 real nodes; with --against in turn with another tree.

    python -m bench.paths [--only deliver-128,get] [--corpus FOLDER]
    python -m bench.paths --against ../earlier      # a git worktree of an earlier commit

Plain text on loopback; one client process with uvloop. Absolute figures are of this machine and
this minute; what says something are the ratios of two trees that are measured in turn (A B A B),
each with a cluster of its own that is idle while the other one works. docs/performance.md has some.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAILBOXES = 64
LARGE_MAILBOX = 10_000
FAN_OUT = 20
PAGE = 50
MAIL_BYTES_MIN, MAIL_BYTES_MAX = 1_024, 16_384
IDLE_S = 3.0
COMMAND_S_MAX = 300.0
_TICKS = os.sysconf("SC_CLK_TCK")

# Name: tasks at a time.
PATHS = {
    "deliver-1": 1,
    "deliver-8": 8,
    "deliver-128": 128,
    "deliver-1024": 1_024,
    "fan-out-20": 16,
    "get-1": 1,
    "get-8": 8,
    "get-32": 32,
    "list-8": 8,
    "flag-32": 32,
    "idle": 0,
}


@dataclass(slots=True)
class Measured:
    """One run of one path."""

    per_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_s_per_1000: float
    client_share: float  # of a core


# ---- one tree: a cluster, and a client that measures what it is told -----------------------------


@dataclass(slots=True)
class Bench:
    """What the paths work on."""

    client: Any
    mails: Iterator[bytes]
    accounts: list[str]
    large: str = "large"
    ids: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=lambda: [""])  # of the pages of the large mailbox

    def path(self, name: str) -> Callable[[int], Awaitable[int]]:
        """Does it once, for the n-th time; how many things that were."""
        return getattr(self, "_" + name.partition("-")[0])  # type: ignore[no-any-return]

    async def _deliver(self, n: int) -> int:
        account = self.accounts[n % MAILBOXES]
        receipt = await self.client.deliver(next(self.mails), to=[account])
        if len(self.ids) < LARGE_MAILBOX:
            self.ids.append((account, receipt.recipients[0].message_id))
        return 1

    async def _fan(self, n: int) -> int:
        to = [self.accounts[(n + each) % MAILBOXES] for each in range(FAN_OUT)]
        receipt = await self.client.deliver(next(self.mails), to=to)
        assert not receipt.failed
        return FAN_OUT

    async def _get(self, n: int) -> int:
        from mailraft.client import Consistency  # of the tree that is measured

        account, message = self.ids[n * 7919 % len(self.ids)]
        await self.client.fetch_body(account, message, consistency=Consistency.LINEARIZABLE)
        return 1

    async def _list(self, n: int) -> int:
        token = self.tokens[n * 7919 % len(self.tokens)]
        page = await self.client.list_messages(
            self.large, "INBOX", page_size=PAGE, page_token=token
        )
        assert len(page.messages) == PAGE
        return 1

    async def _flag(self, n: int) -> int:
        account, message = self.ids[n * 7919 % len(self.ids)]
        word = ("$flagged", "$answered", "$seen", "$forwarded")[n % 4]
        add, remove = ([word], []) if n // 4 % 2 else ([], [word])
        await self.client.modify_keywords(account, [message], add=add, remove=remove)
        return 1

    async def fill(self) -> None:
        """Accounts, and a large mailbox."""
        for account in (*self.accounts, self.large):
            await self.client.create_account(account)
        numbers = iter(range(LARGE_MAILBOX))

        async def deliver() -> None:
            for _ in numbers:
                await self.client.deliver(next(self.mails)[:2048], to=[self.large])

        await asyncio.gather(*(deliver() for _ in range(256)))
        for _ in range(1, LARGE_MAILBOX // PAGE):
            page = await self.client.list_messages(
                self.large, "INBOX", page_size=PAGE, page_token=self.tokens[-1]
            )
            self.tokens.append(page.next_page_token)


async def measure(bench: Bench, name: str, seconds: float, pids: list[int]) -> Measured:
    """Run a path for so long."""
    took_s: list[float] = []
    numbers = itertools.count()
    done = 0
    cpu_s, own_s, began_s = _cpu_s(pids), time.process_time(), time.perf_counter()
    if not PATHS[name]:
        await asyncio.sleep(IDLE_S)
    path, until_s = bench.path(name) if PATHS[name] else None, began_s + seconds

    async def work() -> None:
        nonlocal done
        assert path is not None
        while (at_s := time.perf_counter()) < until_s:
            count = await path(next(numbers))
            done += count
            took_s.append(time.perf_counter() - at_s)

    await asyncio.gather(*(work() for _ in range(PATHS[name])))
    elapsed_s = time.perf_counter() - began_s
    took_s.sort()
    return Measured(
        per_s=done / elapsed_s,
        p50_ms=1000 * _quantile(took_s, 0.5),
        p99_ms=1000 * _quantile(took_s, 0.99),
        # Of an idle cluster: per second.
        server_cpu_s_per_1000=(_cpu_s(pids) - cpu_s) / (done / 1000 if done else elapsed_s),
        client_share=(time.process_time() - own_s) / elapsed_s,
    )


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _cpu_s(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def _mails(corpus: Path | None) -> Iterator[bytes]:
    from mailraft.cluster.corpus import Corpus, default_path

    found = [each.raw for each in Corpus(corpus or default_path())]
    kept = [raw for raw in found if MAIL_BYTES_MIN <= len(raw) <= MAIL_BYTES_MAX]
    return itertools.cycle(kept)


async def serve_one(options: argparse.Namespace) -> None:
    """A tree: says when its cluster is ready, then measures what each line of its input names."""
    from mailraft.cluster.local import LocalCluster, LocalOptions

    with tempfile.TemporaryDirectory(prefix="mailraft-paths-", dir=options.folder) as folder:
        local = LocalOptions(nodes=3, shards=options.shards, insecure=True)
        async with LocalCluster(Path(folder), local) as cluster:
            await cluster.wait_ready()
            pids = [cluster.pid_of(node) for node in cluster.nodes]
            async with cluster.client(deadline_s=30.0) as client:
                accounts = [f"user{number}" for number in range(MAILBOXES)]
                bench = Bench(client, _mails(options.corpus), accounts)
                await bench.fill()
                await measure(bench, "deliver-128", 1.0, pids)
                print(json.dumps({"ready": pids}), flush=True)
                loop = asyncio.get_running_loop()
                while line := await loop.run_in_executor(None, sys.stdin.readline):
                    name, seconds = line.split()
                    found = await measure(bench, name, float(seconds), pids)
                    print(json.dumps(_fields(found)), flush=True)


def _fields(found: Measured) -> dict[str, float]:
    return {name: getattr(found, name) for name in Measured.__slots__}


# ---- one tree or two, in turn -------------------------------------------------------------------


class Tree:
    """The process that measures one tree."""

    def __init__(self, name: str, root: Path, options: argparse.Namespace) -> None:
        self.name = name
        arguments = ["--serve", "--shards", str(options.shards)]
        for flag, value in (("--corpus", options.corpus), ("--folder", options.folder)):
            arguments += [flag, str(value)] if value else []
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(_importable(root))},
        )

    def ready(self) -> list[int]:
        """The numbers of its node processes."""
        return self._read()["ready"]  # type: ignore[no-any-return]

    def measure(self, path: str, seconds: float) -> Measured:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path} {seconds}\n")
        self._process.stdin.flush()
        return Measured(**self._read())

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(COMMAND_S_MAX)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended")
        found: dict[str, Any] = json.loads(line)
        return found


def _importable(root: Path) -> Path:
    """A folder on whose path `mailraft` is this tree's."""
    made = Path(tempfile.mkdtemp(prefix="mailraft-tree-"))
    package = made / "mailraft"
    package.mkdir()
    for room in ("node", "router", "client", "cluster"):
        (package / room).symlink_to(root / room)
    for room in ("v1", "internal", "wire"):
        (package / room).symlink_to(root / "proto" / "mailraft" / room)
    return made


def compare(options: argparse.Namespace) -> None:
    """Measure in turn, and print medians and ratios."""
    here = Path(__file__).resolve().parents[1]
    trees = [Tree("here", here, options)]
    if options.against:
        trees.append(Tree("there", options.against.resolve(), options))
    try:
        for tree in trees:
            tree.ready()
        wanted = options.only.split(",") if options.only else list(PATHS)
        if {*wanted} - {*PATHS}:
            raise SystemExit(f"paths are {', '.join(PATHS)}")
        for path in wanted:
            runs: dict[str, list[Measured]] = {tree.name: [] for tree in trees}
            for number in range(options.rounds):
                for tree in trees if number % 2 else reversed(trees):
                    runs[tree.name].append(tree.measure(path, options.seconds))
            _print(path, runs)
    finally:
        for tree in trees:
            tree.end()


def _print(path: str, runs: dict[str, list[Measured]]) -> None:
    for name, found in runs.items():
        per_s, p50, p99, cpu, share = (
            statistics.median(getattr(each, what) for each in found) for what in Measured.__slots__
        )
        print(
            f"{path:13} {name:6} {per_s:9,.0f}/s  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  "
            f"servers {cpu:.3f} s per 1,000  client {share:.2f} cores",
            flush=True,
        )
    if len(runs) == 2:
        here, there = runs["here"], runs["there"]
        pairs = list(zip(here, there, strict=True))
        rate = [a.per_s / b.per_s for a, b in pairs if b.per_s]
        cpu = [b.server_cpu_s_per_1000 / max(1e-9, a.server_cpu_s_per_1000) for a, b in pairs]
        p50 = [b.p50_ms / a.p50_ms for a, b in pairs if a.p50_ms]
        told = [
            f"{what} x {statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})"
            for what, found in (("rate", rate), ("p50", p50), ("cpu", cpu))
            if found
        ]
        print(f"{path:13} better:  {'  '.join(told)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", type=Path, help="the root of another tree")
    parser.add_argument("--only", default="", help="paths, with commas")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--folder", type=Path, help="where clusters keep their data")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.serve:
        compare(options)
        return
    import uvloop

    uvloop.run(serve_one(options))


if __name__ == "__main__":
    main()
