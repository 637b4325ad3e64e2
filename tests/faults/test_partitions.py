"""Rows 4 and 6: nodes that do not hear each other, or hear each other late."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from tests.faults.load import Load
from tests.faults.network import Direction, ProxiedCluster, both_ways
from tests.faults.rows import judge

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

CUT_S = 6.0
MAJORITY_WRITES_S = 2.0


def directions(how: str, leader: int, others: list[int]) -> set[Direction]:
    """Who hears nothing of whom. The leader is that of shard 1: each node leads some shard."""
    match how:
        case "halves":
            return both_ways(others[:1], [leader, *others[1:]])
        case "leader alone":
            return both_ways([leader], others)
        case "leader not heard":
            return {(leader, other) for other in others}
        case "leader deaf":
            return {(other, leader) for other in others}
        case _:
            return both_ways([leader], others[:1])


HOW = ("halves", "leader alone", "leader not heard", "leader deaf", "bridge")


@pytest.mark.parametrize("how", HOW)
async def test_partition(proxied: ProxiedCluster, how: str) -> None:
    """Twice for 6 s: linearizable, nothing lost, the majority goes on soon. Clients reach all."""
    async with Load(proxied, seed=40 + HOW.index(how)) as load:
        await load.more(200)
        for _ in range(2):
            leader = await proxied.leader_of(1)
            assert leader is not None
            others = [node for node in proxied.nodes if node != leader]
            with load.history.fault():
                await proxied.network.cut(directions(how, leader, others))
                await asyncio.sleep(CUT_S)
                await proxied.network.heal()
            await load.more(200)
        _, after_s = load.history.longest_silence()
        remark = f"twice {CUT_S:.0f} s; silent from {after_s:+.1f} s on"
        row = await judge(f"4 partition: {how}", proxied, load, remark)
    assert row.silence_s <= MAJORITY_WRITES_S, row


DELAY_S = 0.3
ROUNDS = 8


async def test_delays_and_cuts(proxied: ProxiedCluster) -> None:
    """Everything between nodes late by up to 0.3 s while links are cut and come back at random:
    linearizable, each request once.
    """
    chance = Random(6)
    every = sorted(both_ways(proxied.nodes, proxied.nodes))
    async with Load(proxied, seed=6) as load:
        await load.more(200)
        with load.history.fault():
            proxied.network.delay(DELAY_S)
            for _ in range(ROUNDS):
                await proxied.network.cut(chance.sample(every, chance.randint(0, 3)))
                await asyncio.sleep(chance.uniform(0.3, 2.0))
                await proxied.network.heal()
                await asyncio.sleep(chance.uniform(0.3, 2.0))
            proxied.network.delay(0.0)
        await load.more(400)
        await judge("6 delays and cuts", proxied, load, f"{ROUNDS} rounds")
