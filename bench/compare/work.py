"""A work, run by many tasks for some seconds, and what is known of such a slice."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.compare.interface import Work
from bench.failover import percentile

Errors = tuple[type[Exception], ...]
FAILED_MAX = 10_000
FAILED_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Done:
    """What the client saw of one slice."""

    units: int
    took_s: float
    p50_ms: float  # of a call
    p99_ms: float
    client_cpu_s: float
    failed: int  # calls

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Slice:
    """The same with what it cost the servers. written_bytes: None where it cannot be told."""

    done: Done
    server_cpu_s: float
    written_bytes: int | None

    @property
    def per_s(self) -> float:
        return self.done.units / self.done.took_s

    @property
    def cpu_s_per_1000(self) -> float:
        return 1000 * self.server_cpu_s / self.done.units

    @property
    def written_per_unit(self) -> float | None:
        return None if self.written_bytes is None else self.written_bytes / self.done.units


async def run(work: Work, seconds: float, errors: Errors = ()) -> Done:
    """Each task calls until the time is over; the last calls are waited for and counted."""
    took_s: list[float] = []
    units = failed = 0
    began_s, began_cpu_s = time.perf_counter(), _cpu_s()
    end_s = began_s + seconds

    async def task(number: int) -> None:
        nonlocal units, failed
        while (call_s := time.perf_counter()) < end_s:
            try:
                done = await work.call(number)  # apart from the sum: others add to it meanwhile
            except errors:
                failed += 1
                continue
            units += done
            took_s.append(time.perf_counter() - call_s)

    async with asyncio.TaskGroup() as group:
        for number in range(work.tasks):
            group.create_task(task(number))
    all_s = time.perf_counter() - began_s
    took_s.sort()
    used_s = _cpu_s() - began_cpu_s
    return Done(units, all_s, _ms(took_s, 0.5), _ms(took_s, 0.99), used_s, failed)


async def run_units(work: Work, units: int, errors: Errors = ()) -> int:
    """The same until at least so many units are done; answers how many.

    A call that fails is tried again, up to FAILED_MAX of them in all: then its error is raised.
    """
    done = failed = 0

    async def task(number: int) -> None:
        nonlocal done, failed
        while done < units:
            try:
                more = await work.call(number)
            except errors:
                failed += 1
                if failed > FAILED_MAX:
                    raise
                await asyncio.sleep(FAILED_PAUSE_S)
                continue
            done += more

    async with asyncio.TaskGroup() as group:
        for number in range(work.tasks):
            group.create_task(task(number))
    return done


def _ms(sorted_s: Sequence[float], share: float) -> float:
    return 1000 * percentile(sorted_s, share) if sorted_s else 0.0


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
