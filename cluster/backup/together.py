"""Work that is done side by side, so many at a time; the first failure ends all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def together(work: Iterable[Callable[[], Awaitable[T]]], at_a_time: int) -> list[T]:
    """What each answers, in no order. `work` may be long: it is begun as it is taken."""
    todo, answers = iter(work), list[T]()

    async def worker() -> None:
        for each in todo:
            answers.append(await each())

    workers = [asyncio.create_task(worker()) for _ in range(at_a_time)]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()
        await asyncio.wait(workers)
    return answers
