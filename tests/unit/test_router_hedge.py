"""Hedged reads: the second replica, the budget for it, and that nothing else is asked twice."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from tests.unit.router_fakes import FakeNode, delivery_to, dispatching, fake_cluster, method

from mailraft.client.targets import stand_in_map
from mailraft.router.budget import HEDGE_RATIO, HEDGE_RESERVE
from mailraft.router.failures import LostError
from mailraft.router.goals import goal_of, read_anywhere
from mailraft.router.hedge import AFTER_MIN_S, Hedger
from mailraft.router.latencies import SAMPLES_MIN
from mailraft.router.methods import METHODS, Method
from mailraft.router.table import Place, Topology
from mailraft.v1 import common_pb2, mailbox_pb2, message_service_pb2
from mailraft.wire import errors

A, B = Place(1, "a"), Place(2, "b")
KIND = "GetMessage", int(common_pb2.CONSISTENCY_LOCAL)
FAST_S = 0.05  # also on a machine that has more to do


def experienced(hedger: Hedger, *kinds: Any) -> Hedger:
    """It knows that calls of these kinds take FAST_S."""
    for kind in kinds:
        for _ in range(SAMPLES_MIN):
            hedger.took(kind, FAST_S)
    return hedger


class Asking:
    """Replicas that answer after a while, or fail."""

    def __init__(self, **after_s: float) -> None:
        self.after_s, self.asked, self.left = after_s, [], []  # type: ignore[var-annotated]
        self.failing: set[str] = set()

    async def __call__(self, place: Place) -> str:
        self.asked.append(place.address)
        try:
            await asyncio.sleep(self.after_s[place.address])
        except asyncio.CancelledError:
            self.left.append(place.address)
            raise
        if place.address in self.failing:
            raise LostError(place.address)
        return place.address


async def test_a_slow_replica_is_not_waited_for() -> None:
    """Another answers first; what is asked of the slow one is cancelled."""
    hedger, ask = experienced(Hedger(), KIND), Asking(a=30, b=0)
    async with asyncio.timeout(5):
        assert await hedger.ask(KIND, A, ask, lambda _: B) == "b"
    await asyncio.sleep(0)
    assert (ask.asked, ask.left) == (["a", "b"], ["a"])
    assert (hedger.budget.spent, hedger.won) == (1, 1)


async def test_an_answer_in_time_is_not_asked_for_twice() -> None:
    """Nor is anything of a kind whose times are not known yet."""
    hedger, ask = experienced(Hedger(), KIND), Asking(a=0, b=0)
    assert await hedger.ask(KIND, A, ask, lambda _: B) == "a"
    slow = Asking(a=5 * AFTER_MIN_S + FAST_S, b=0)
    assert await hedger.ask("another kind", A, slow, lambda _: B) == "a"
    assert (ask.asked, slow.asked, hedger.budget.spent) == (["a"], ["a"], 0)


async def test_two_answers_at_once_are_one() -> None:
    """Whichever is seen first: the caller is not cancelled afterwards, in whatever it does then."""
    loop = asyncio.get_running_loop()
    for order in ("ab", "ba"):
        hedger = experienced(Hedger(), KIND)
        gates = {name: loop.create_future() for name in order}
        asked = asyncio.Semaphore(0)

        async def ask(
            place: Place, gates: dict[str, Any] = gates, asked: asyncio.Semaphore = asked
        ) -> str:
            asked.release()
            await gates[place.address]
            return place.address

        async def caller(hedger: Hedger = hedger, ask: Any = ask) -> tuple[str, int]:
            answer = await hedger.ask(KIND, A, ask, lambda _: B)
            await asyncio.sleep(0.05)
            task = asyncio.current_task()
            assert task is not None
            return answer, task.cancelling()

        calling = asyncio.create_task(caller())
        for _ in order:
            await asked.acquire()
        for name in order:
            gates[name].set_result(None)
        answer, cancelling = await calling
        assert answer in order
        assert cancelling == 0


async def test_a_caller_that_gives_up_is_cancelled() -> None:
    """With both that were asked."""
    hedger, ask = experienced(Hedger(), KIND), Asking(a=30, b=30)
    calling = asyncio.create_task(hedger.ask(KIND, A, ask, lambda _: B))
    await asyncio.sleep(6 * FAST_S)
    assert ask.asked == ["a", "b"]
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await asyncio.sleep(0)
    assert sorted(ask.left) == ["a", "b"]


async def test_the_first_may_still_win_and_errors_do_not() -> None:
    """An error counts only when both have failed; it is that of the first."""
    hedger = experienced(Hedger(), KIND)
    ask = Asking(a=6 * FAST_S, b=FAST_S)
    ask.failing = {"b"}
    assert await hedger.ask(KIND, A, ask, lambda _: B) == "a"
    ask.failing = {"a", "b"}
    with pytest.raises(LostError, match="a"):
        await hedger.ask(KIND, A, ask, lambda _: B)
    ask = Asking(a=2 * FAST_S, b=4 * FAST_S)
    ask.failing = {"a"}
    assert await hedger.ask(KIND, A, ask, lambda _: B) == "b"


async def test_without_a_spare_replica_the_first_is_waited_for() -> None:
    """And nothing is taken from the budget."""
    hedger, ask = experienced(Hedger(), KIND), Asking(a=2 * FAST_S)
    assert await hedger.ask(KIND, A, ask, lambda _: None) == "a"
    assert not hedger.budget.spent


async def test_when_all_are_slow_few_are_asked_twice() -> None:
    """At most one in twenty, and a few at once."""
    hedger, ask = experienced(Hedger(), KIND), Asking(a=4 * FAST_S, b=4 * FAST_S)
    calls = 200
    await asyncio.gather(*(hedger.ask(KIND, A, ask, lambda _: B) for _ in range(calls)))
    twice = len(ask.asked) - calls
    assert 0 < twice <= HEDGE_RATIO * calls + HEDGE_RESERVE
    assert hedger.budget.refused == calls - twice


async def test_a_caller_that_leaves_leaves_nothing_behind() -> None:
    """Both calls are cancelled with theirs."""
    hedger, ask = experienced(Hedger(), KIND), Asking(a=30, b=30)
    call = asyncio.create_task(hedger.ask(KIND, A, ask, lambda _: B))
    await asyncio.sleep(FAST_S + 0.05)
    call.cancel()
    await asyncio.wait([call])
    await asyncio.sleep(0)
    assert sorted(ask.left) == ["a", "b"]


# ---- in the dispatcher ---------------------------------------------------------------------------


def read(account: str, level: common_pb2.Consistency.ValueType) -> Any:
    """One message."""
    return message_service_pb2.GetMessageRequest(
        account_id=account,
        message_id="M1",
        read_options=common_pb2.ReadOptions(consistency=level),
    )


def delay(node: FakeNode, name: str, delay_s: float) -> None:
    """Have a node answer late."""

    async def late(_: Any) -> None:
        await asyncio.sleep(delay_s)

    node.hooks[name] = late


async def test_one_slow_replica_delays_few_reads() -> None:
    """Row 16: it hangs for every read; its reads are answered elsewhere, and soon it gets none."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        experienced(dispatcher.hedger, KIND)
        account = cluster.account_in(0)
        delay(cluster.nodes[2], "GetMessage", 30)
        for _ in range(60):
            request = read(account, common_pb2.CONSISTENCY_LOCAL)
            async with asyncio.timeout(5):
                await dispatcher.unary(method("GetMessage"), request)
        assert dispatcher.hedger.won >= cluster.nodes[2].calls["GetMessage"]
        assert 1 <= cluster.nodes[2].calls["GetMessage"] <= 10


async def test_a_slow_replica_holds_up_no_read_that_travels_with_others() -> None:
    """Coalesced reads of the slow node do not wait for each other's hedges."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        experienced(dispatcher.hedger, KIND)
        account = cluster.account_in(0)
        for name in ("GetMessage", "Execute"):
            delay(cluster.nodes[2], name, 30)
        calls = [
            dispatcher.unary(method("GetMessage"), read(account, common_pb2.CONSISTENCY_LOCAL))
            for _ in range(HEDGE_RESERVE)
        ]
        async with asyncio.timeout(5):
            await asyncio.gather(*calls)


async def test_writes_are_never_hedged() -> None:
    """However slow the leader is, and however much is known of its kind: one call a try."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        create = mailbox_pb2.CreateMailboxRequest(account_id=account, request_id=uuid.uuid4().bytes)
        experienced(dispatcher.hedger, ("CreateMailbox", 0), ("DeliverMessages", 0))
        for node in cluster.nodes.values():
            for name in ("CreateMailbox", "DeliverMessages"):
                delay(node, name, 0.3)
        await dispatcher.unary(method("CreateMailbox"), create)
        await dispatcher.deliver(delivery_to(account))
        assert cluster.total("CreateMailbox") == 1
        assert cluster.total("DeliverMessages") == 1
        assert not dispatcher.hedger.budget.spent


@pytest.mark.parametrize("each", METHODS.values(), ids=lambda each: each.name)
def test_no_mutation_counts_as_a_read(each: Method) -> None:
    """Of all calls of the API; what is no read of an account is not asked twice either."""
    if each.client_streaming or each.name in {"ListAccounts", "WatchShard"}:
        return
    request = each.request()
    twice = read_anywhere(goal_of(Topology(stand_in_map(["a", "b"])), each, request), each)
    assert not (twice and (each.mutation or hasattr(request, "request_id")))
    assert twice <= hasattr(request, "read_options")


async def test_a_linearizable_read_is_asked_of_the_leader_alone() -> None:
    """A second replica would only ask the same leader."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        experienced(dispatcher.hedger, ("GetMessage", int(common_pb2.CONSISTENCY_LINEARIZABLE)))
        account = cluster.account_in(0)
        delay(cluster.leader_of(account), "GetMessage", 0.3)
        request = read(account, common_pb2.CONSISTENCY_LINEARIZABLE)
        await dispatcher.unary(method("GetMessage"), request)
        assert cluster.total("GetMessage") == 1


async def test_reads_are_spread_over_replicas_and_stay_off_a_full_one() -> None:
    """LOCAL reads use all; one that says OVERLOADED is left for as long as it says."""
    async with (
        fake_cluster() as cluster,
        dispatching(cluster, coalesce_reads=False) as dispatcher,
    ):
        account = cluster.account_in(0)
        request = read(account, common_pb2.CONSISTENCY_LOCAL)
        for node in cluster.nodes.values():
            delay(node, "GetMessage", 0.002)
        calls = [dispatcher.unary(method("GetMessage"), request) for _ in range(60)]
        await asyncio.gather(*calls)
        assert all(node.calls["GetMessage"] > 3 for node in cluster.nodes.values())

        async def full(_: Any) -> None:
            raise errors.OverloadedError(retry_after_ms=5_000)

        cluster.nodes[3].hooks["GetMessage"] = full
        before = cluster.nodes[3].calls["GetMessage"]
        for _ in range(4):
            calls = [dispatcher.unary(method("GetMessage"), request) for _ in range(10)]
            await asyncio.gather(*calls)
        assert before < cluster.nodes[3].calls["GetMessage"] <= before + 10


async def test_the_own_zone_is_near() -> None:
    """The dispatcher's zone decides, as long as nobody there is slow."""
    async with fake_cluster() as cluster:
        told = cluster.map()
        for node in told.nodes:
            node.zone = f"zone-{node.id}"
        cluster.map = lambda **_: told  # type: ignore[method-assign]
        async with dispatching(cluster, zone="zone-2") as dispatcher:
            request = read(cluster.account_in(0), common_pb2.CONSISTENCY_LOCAL)
            for _ in range(30):
                await dispatcher.unary(method("GetMessage"), request)
        assert cluster.nodes[2].calls["GetMessage"] >= 25


async def test_what_is_asked_of_a_node_ends_with_the_caller() -> None:
    """The deadline that a node sees is what is left of the caller's, or less."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        until_s = asyncio.get_running_loop().time() + 0.5
        request = read(cluster.account_in(0), common_pb2.CONSISTENCY_LOCAL)
        await dispatcher.unary(method("GetMessage"), request, until_s)
        seen = [each for node in cluster.nodes.values() for each in node.deadlines_s]
        assert len(seen) == 1
        assert 0.3 < seen[0] <= 0.51  # gRPC rounds
