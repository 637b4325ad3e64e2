"""A scripted day of operations on a local cluster under load: `make rehearse`.

Three nodes and a router, all real processes. Two nodes join; one is drained, then decommissioned;
one is killed for good and replaced; all move into zones; every process is restarted. Clients
deliver, list, fetch and change keywords at a steady rate meanwhile (bench/rehearsal_load.py). After
each step: what they saw against the calm before it, and whether every replica is where the map
says. At the end everything is read back. Exit status 1: a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.failover import percentile
from bench.rehearsal_cluster import Look, Watcher, groups, present
from bench.rehearsal_load import Call, Clients

from mailraft.cluster.checks import Checks
from mailraft.cluster.errors import ClusterError
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.cluster.operator import Operator
from mailraft.v1 import job_pb2
from mailraft.wire import errors

LIMIT_S = 28 * 60.0
JOB_DEADLINE_S = 240.0
SETTLE_DEADLINE_S = 60.0
# A process that has left, or was asked to stop, ends within this.
ENDS_DEADLINE_S = 20.0
HOLD_S = 5.0  # how long a drained node stays drained
JOIN_TOLERANCE = 0.05
TOLD_MAX = 10
SLOW_S = 1.0  # a call above it is told of
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Scale:
    """fill: messages a worker before it begins. zones: of the nodes that replace all others; none:
    they stay.
    """

    shards: int
    fill: int
    calm_s: float
    zones: tuple[str, ...]


FULL = Scale(shards=8, fill=150, calm_s=15.0, zones=("a", "b", "c", "a"))
SHORT = Scale(shards=4, fill=20, calm_s=4.0, zones=())


@dataclass(slots=True)
class Row:
    """One step as clients saw it. Latencies in seconds, of the calm before and of the step."""

    name: str
    planned: bool = True
    took_s: float = 0.0
    before: list[Call] = field(default_factory=list)
    during: list[Call] = field(default_factory=list)
    moved: int = 0
    moved_bytes: int = 0
    end: Look = field(default_factory=Look)
    notes: list[str] = field(default_factory=list)

    HEADER = (
        *("step", "s", "calls", "failed", "p50 ms", "p99 ms", "before", "longest write s"),
        *("moved", "MiB of mail", "under-replicated", "left over"),
    )

    @property
    def failed(self) -> list[Call]:
        return [each for each in self.during if each.error]

    def cells(self) -> tuple[str, ...]:
        p50_ms, p99_ms = _latencies_ms(self.during)
        before_p50_ms, before_p99_ms = _latencies_ms(self.before)
        writes = [each.took_s for each in self.during if each.kind in ("deliver", "flag")]
        return (
            self.name + ("" if self.planned else " (unplanned)"),
            f"{self.took_s:.0f}",
            str(len(self.during)),
            str(len(self.failed)),
            f"{p50_ms:.0f}",
            f"{p99_ms:.0f}",
            f"{before_p50_ms:.0f} / {before_p99_ms:.0f}",
            f"{max(writes, default=0.0):.2f}",
            str(self.moved),
            f"{self.moved_bytes / MIB:.1f}",
            str(len(self.end.under_replicated)),
            str(len(self.end.left_over)),
        )


class Rehearsal:
    """Runs the steps; `broken` has each promise that was not kept."""

    def __init__(
        self,
        cluster: LocalCluster,
        operator: Operator,
        clients: Clients,
        scale: Scale,
        say: Callable[[str], None],
    ) -> None:
        self.rows: list[Row] = []
        self.broken: list[str] = []
        self._cluster, self._operator, self._clients = cluster, operator, clients
        self._watcher = Watcher(cluster, operator)
        self._scale, self._say = scale, say

    async def run(self) -> None:
        """The whole day, in its order."""
        async with self._step("baseline"):
            await asyncio.sleep(self._scale.calm_s)
        for _ in range(2):
            await self._join()
        await self._drain(2)
        await self._decommission(2)
        await self._replace_killed()
        if self._scale.zones:
            await self._move_into_zones()
        await self._restart_nodes()
        async with self._step("restart the router"):
            await self._cluster.restart_router()
            await self._cluster.wait_ready()

    async def judge(self) -> None:
        """Stop the load, read everything back, compare the replicas."""
        await self._clients.stop()
        verdict = await self._clients.verdict()
        self._say(
            f"read back: {verdict.messages} messages, {verdict.lost} lost, "
            f"{verdict.doubled} doubled, {len(verdict.wrong)} wrong"
        )
        self._break("read back: ", verdict.wrong)
        cluster_map = await self._operator.newest_map()
        async with Checks(cluster_map, self._cluster.credentials()) as checks:
            compared, bodies = await checks.compare(), await checks.audit()
        equal = sum(len(each.matching) for each in compared)
        stored = sum(each.stored for each in bodies)
        self._say(f"replicas: {equal} of {sum(each.replicas for each in compared)} match")
        self._say(f"bodies: {stored} on {len(bodies)} replicas")
        self._break("hash: ", [str(each) for each in compared if each.differing or each.missing])
        self._break("bodies: ", [str(each) for each in bodies if each.wrong or each.error])
        alarms = [each.message for each in (await self._operator.status()).alarms]
        self._break("alarm: ", alarms)

    # ---- steps -----------------------------------------------------------------------------------

    async def _join(self) -> None:
        """One node more: it takes its share, and nothing else moves."""
        name = f"add n{_next_number(self._cluster)}"
        async with self._step(name) as row:
            joined = await self._grow()
            planned = await self._operator.rebalance()
            await self._succeeded(planned.job)
            told = await self._operator.newest_map()
            nodes = len(present(told))
            replicas = [each for shard in groups(told) for each in shard.replicas]
            share = len(planned.moves) / len(replicas)
            took = sum(each.node_id == joined for each in replicas)
            row.notes.append(
                f"n{joined} took {took}, {len(planned.moves)} of {len(replicas)} replicas moved "
                f"({share:.0%}, 1/{nodes} is {1 / nodes:.0%})"
            )
            if share > 1 / nodes + JOIN_TOLERANCE:
                self._break(f"{name}: ", row.notes)

    async def _drain(self, node: int) -> None:
        """It leads nothing until it is undrained."""
        async with self._step(f"drain n{node}, undrain it") as row:
            began_s = time.monotonic()
            await self._succeeded(await self._operator.drain(node))
            row.notes.append(f"drained in {time.monotonic() - began_s:.1f} s")
            until_s = time.monotonic() + HOLD_S
            while time.monotonic() < until_s:
                led = [s for s, leader in (await self._cluster.leaders()).items() if leader == node]
                self._break(f"n{node} is drained and leads ", map(str, led))
                await asyncio.sleep(0.5)
            await self._operator.undrain(node)

    async def _decommission(self, node: int) -> None:
        async with self._step(f"decommission n{node}") as row:
            await self._leave(node)
            row.notes.append(f"n{node} ended by itself, without a replica on its disk")

    async def _leave(self, node: int) -> None:
        """All replicas off it; then its process ends by itself, and its folder holds none."""
        await self._succeeded(await self._operator.decommission(node))
        await self._ended(node)
        left = self._watcher.on_disk(node)
        self._break(f"n{node} was removed and has on its disk ", map(str, left))

    async def _ended(self, node: int) -> None:
        """Wait until a process ends in good order, by itself or as it was asked."""
        in_time = await self._cluster.stopped(node, ENDS_DEADLINE_S)
        if not in_time or any(each.name == f"n{node}" for each in self._cluster.ended()):
            self._break(f"n{node} ", ["did not end in good order" if in_time else "did not end"])

    async def _replace_killed(self) -> None:
        """SIGKILL of the node where the controller runs; it is struck out, and another joins."""
        number = await self._watcher.meta_leader()
        async with self._step(f"kill n{number} for good, remove it", planned=False) as row:
            began_s = time.monotonic()
            self._cluster.kill(number)
            self._cluster.forget(number)
            await self._removed(number)
            row.notes.append(f"three replicas everywhere after {time.monotonic() - began_s:.1f} s")
        async with self._step(f"add n{_next_number(self._cluster)} in its place"):
            await self._grow()
            await self._succeeded((await self._operator.rebalance()).job)

    async def _removed(self, number: int) -> None:
        """Strike out a node that is lost, as soon as it counts as silent; wait until it is done."""
        until_s = time.monotonic() + JOB_DEADLINE_S
        while True:
            try:
                await self._operator.remove(number)
                break
            except errors.NodeReachableError:
                if time.monotonic() > until_s:
                    raise
                await asyncio.sleep(0.5)
        [job] = [
            each for each in await self._operator.jobs() if each.spec.decommission.node_id == number
        ]
        await self._succeeded(job)

    async def _move_into_zones(self) -> None:
        """A node's zone is set when it is admitted: each node is swapped for one with a label."""
        old = sorted(each.id for each in present(await self._operator.newest_map()))
        for node, zone in itertools.zip_longest(old, self._scale.zones):
            if zone is None:
                async with self._step(f"decommission n{node}"):
                    await self._leave(node)
                continue
            name = f"swap n{node} for n{_next_number(self._cluster)} in zone {zone}"
            async with self._step(name):
                await self._grow(zone=zone)
                await self._leave(node)
        async with self._step("rebalance over the zones") as row:
            await self._succeeded((await self._operator.rebalance()).job)
            told = await self._operator.newest_map()
            zones = {each.id: each.zone for each in present(told)}
            for shard in groups(told):
                apart = {zones[each.node_id] for each in shard.replicas}
                if len(apart) < len(shard.replicas):
                    self._break("zones: ", [f"s{shard.id} is in {sorted(apart)} only"])
            row.notes.append(f"every group has its replicas in {len(set(zones.values()))} zones")

    async def _restart_nodes(self) -> None:
        """SIGTERM, and start again: one at a time, the next when every replica is there again."""
        async with self._step("rolling restart of all nodes") as row:
            for node in sorted(each.id for each in present(await self._operator.newest_map())):
                began_s = time.monotonic()
                self._cluster.terminate(node)
                await self._ended(node)
                self._cluster.start(node)
                await self._cluster.wait_ready()
                end = await self._settled()
                self._break(f"n{node} was restarted: ", end.complaints())
                row.notes.append(f"n{node} {time.monotonic() - began_s:.1f} s")

    async def _grow(self, *, zone: str = "") -> int:
        """A node more that serves, and was heard by the controller: only then it gets replicas."""
        joined = await self._cluster.grow(zone=zone)
        await self._cluster.wait_ready()
        await self._watcher.wait_heard(joined)
        return joined

    async def _succeeded(self, job: job_pb2.Job) -> None:
        ended = await self._operator.finished(job.id, deadline_s=JOB_DEADLINE_S)
        if ended.state != job_pb2.JOB_STATE_SUCCEEDED:
            self._break("job: ", [" ".join(str(ended).split())])

    # ---- around each -----------------------------------------------------------------------------

    @asynccontextmanager
    async def _step(self, name: str, *, planned: bool = True) -> AsyncIterator[Row]:
        """The calm before, the step, and until all is well again: one row of the report."""
        row = Row(name, planned)
        await asyncio.sleep(self._scale.calm_s)
        known = await self._watcher.finished_moves()
        began_s = time.monotonic()
        yield row
        row.end = await self._settled()
        ended_s = time.monotonic()
        row.took_s = ended_s - began_s
        await self._clients.reached(ended_s)
        row.before = _due(self._clients.calls, began_s - self._scale.calm_s, began_s)
        row.during = _due(self._clients.calls, began_s, ended_s)
        moves = {
            key: spec
            for key, spec in (await self._watcher.finished_moves()).items()
            if key not in known
        }
        row.moved = len(moves)
        row.moved_bytes = sum(self._clients.bytes_in(each.shard) for each in moves.values())
        self._report(row)

    async def _settled(self) -> Look:
        """Wait until no job is open and every replica is where the map says, and only there."""
        until_s = time.monotonic() + SETTLE_DEADLINE_S
        while True:
            look = await self._watcher.look()
            if not look.complaints() or time.monotonic() > until_s:
                return look
            await asyncio.sleep(0.5)

    def _report(self, row: Row) -> None:
        self.rows.append(row)
        cells = dict(zip(Row.HEADER, row.cells(), strict=True))
        self._say("{step}: {s} s".format(**cells))
        self._say(
            "  {calls} calls, {failed} failed, longest write {longest write s} s".format(**cells)
        )
        self._say("  p50 {p50 ms} ms, p99 {p99 ms} ms (before: {before})".format(**cells))
        self._say("  {moved} replicas moved, with {MiB of mail} MiB of mail".format(**cells))
        for note in row.notes:
            self._say(f"  {note}")
        slowest = max(row.during, key=lambda each: each.took_s, default=None)
        if slowest is not None and slowest.took_s > SLOW_S:
            self._say(f"  slowest: {slowest}")
        for call in row.failed[:TOLD_MAX]:
            self._say(f"  failed: {call}")
        if row.planned and row.failed:
            self._break(f"{row.name}: ", [f"{len(row.failed)} calls failed"])
        self._break(f"{row.name}: ", row.end.complaints())

    def _break(self, what: str, complaints: Iterable[str]) -> None:
        found = [what + complaint for complaint in complaints]
        if len(found) > TOLD_MAX:
            found[TOLD_MAX:] = [f"{what}{len(found) - TOLD_MAX} more like these"]
        for complaint in found:
            self._say(f"  BROKEN: {complaint}")
        self.broken += found


def _next_number(cluster: LocalCluster) -> int:
    return max(node.id for node in cluster.map.nodes) + 1


def _due(calls: Sequence[Call], start_s: float, end_s: float) -> list[Call]:
    return [each for each in calls if start_s <= each.due_s < end_s]


def _latencies_ms(calls: Sequence[Call]) -> tuple[float, float]:
    """p50, p99."""
    times_s = sorted(each.took_s for each in calls)
    if not times_s:
        return 0.0, 0.0
    return percentile(times_s, 0.5) * 1000, percentile(times_s, 0.99) * 1000


def _table(rows: Sequence[Row]) -> Iterable[str]:
    lines = [Row.HEADER, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *figures in lines:
        aligned = map(str.rjust, figures, widths[1:])
        yield "  ".join([name.ljust(widths[0]), *aligned])


async def rehearse(folder: Path, scale: Scale, seed: int, say: Callable[[str], None]) -> bool:
    """Whether every promise was kept. What is started has ended when this returns."""
    began_s = time.monotonic()
    async with LocalCluster(folder, LocalOptions(nodes=3, shards=scale.shards)) as cluster:
        await cluster.wait_ready()
        async with (
            Operator(cluster.router_address, cluster.credentials()) as operator,
            Clients(cluster, seed=seed) as clients,
        ):
            await clients.fill(scale.fill)
            clients.start()
            rehearsal = Rehearsal(cluster, operator, clients, scale, say)
            try:
                await rehearsal.run()
            except (errors.MailraftError, ClusterError, TimeoutError) as error:
                rehearsal.broken.append(f"the day ended early: {error!r}")
            await rehearsal.judge()
    took_s = time.monotonic() - began_s
    for line in ("", *_table(rehearsal.rows), ""):
        say(line)
    if took_s > LIMIT_S:
        rehearsal.broken.append(f"it took more than {LIMIT_S / 60:.0f} minutes")
    for each in rehearsal.broken:
        say(f"BROKEN: {each}")
    calls = len(clients.calls)
    failed = sum(bool(each.error) for each in clients.calls)
    kept = "every promise was kept" if not rehearsal.broken else "promises were broken"
    say(f"{kept}: {calls} calls, {failed} failed, in {took_s / 60:.1f} minutes, seed {seed}")
    return not rehearsal.broken


def main() -> int:
    """Rehearses in a temporary folder, or in one that is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of what the clients do")
    parser.add_argument("--short", action="store_true", help="less mail, shorter calms, no zones")
    parser.add_argument("--folder", type=Path, help="new; is kept, with the logs of all processes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mailraft-rehearsal-") as name:
        folder = asked.folder or Path(name) / "cluster"
        scale = SHORT if asked.short else FULL
        try:
            kept = asyncio.run(
                rehearse(folder, scale, asked.seed, lambda line: print(line, flush=True))
            )
        except KeyboardInterrupt:
            return 130
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
