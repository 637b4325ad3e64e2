"""A node whose disk is full takes no new mail as a leader, takes deletes, and hands over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mailraft.client import AsyncClient
from mailraft.cluster.control.observed import HandOver
from mailraft.cluster.control.plan import plan
from mailraft.internal.v1 import command_pb2
from mailraft.node.disk_space import ROOM_AGAIN, DiskSpace, Reserve, nearly_full
from mailraft.node.engine.backend import DiskUsage
from mailraft.node.interfaces import node_of, replica_id
from mailraft.wire import errors
from seen_cluster import seen
from three_nodes import Nodes, all_up, until

GIB = 1024**3
VOTERS = tuple(replica_id(node, 1) for node in (1, 2, 3))
FULL, ROOMY = DiskUsage(100 * GIB, GIB), DiskUsage(100 * GIB, 50 * GIB)
ADD = (
    command_pb2.Command(create_account=command_pb2.CreateAccount()),
    command_pb2.Command(create_mailbox=command_pb2.CreateMailbox()),
    command_pb2.Command(deliver=command_pb2.Deliver()),
    command_pb2.Command(append=command_pb2.Append()),
    command_pb2.Command(copy_messages=command_pb2.CopyMessages(duplicate=True)),
    command_pb2.Command(undelete_messages=command_pb2.UndeleteMessages()),
    command_pb2.Command(begin_upload=command_pb2.BeginUpload()),
    command_pb2.Command(upload_part=command_pb2.UploadPart()),
)
FREE = (
    command_pb2.Command(expunge_messages=command_pb2.ExpungeMessages()),
    command_pb2.Command(delete_mailbox=command_pb2.DeleteMailbox()),
    command_pb2.Command(delete_account=command_pb2.DeleteAccount()),
    command_pb2.Command(drop_upload=command_pb2.DropUpload()),
    command_pb2.Command(modify_keywords=command_pb2.ModifyKeywords(remove=["$seen"])),
    command_pb2.Command(move_messages=command_pb2.MoveMessages()),  # to the trash
    command_pb2.Command(update_mailbox=command_pb2.UpdateMailbox()),  # how long mail stays there
    command_pb2.Command(do_chore=command_pb2.DoChore()),
    command_pb2.Command(collect_bodies=command_pb2.CollectBodies()),
)


def test_an_operator_is_told_in_time() -> None:
    """At a fifth of a small disk, at 16 GiB of a large one; not when nothing is known."""
    assert nearly_full(DiskUsage(10 * GIB, 2 * GIB - 1))
    assert not nearly_full(DiskUsage(10 * GIB, 2 * GIB))
    assert nearly_full(DiskUsage(4_000 * GIB, 16 * GIB - 1))
    assert not nearly_full(DiskUsage(4_000 * GIB, 16 * GIB))
    assert not nearly_full(DiskUsage(0, 0))


def space_of(usage: DiskUsage, *full_peers: int) -> DiskSpace:
    """Of node 1."""
    space = DiskSpace(Reserve(), lambda: set(full_peers))
    space.look(usage)
    return space


@pytest.mark.parametrize(
    ("total_bytes", "reserve_bytes"), [(GIB, GIB // 10), (20 * GIB, 2 * GIB), (9000 * GIB, 2 * GIB)]
)
def test_the_reserve_of_a_large_disk_is_bounded(total_bytes: int, reserve_bytes: int) -> None:
    """A tenth, or 2 GiB if that is less."""
    assert not space_of(DiskUsage(total_bytes, reserve_bytes)).full
    assert space_of(DiskUsage(total_bytes, reserve_bytes - 1)).full


@pytest.mark.parametrize("command", ADD, ids=lambda each: each.WhichOneof("action"))
def test_what_adds_mail_is_refused(command: command_pb2.Command) -> None:
    """With DISK_FULL, which may be tried again; with room it is taken."""
    space_of(ROOMY).admit(command, VOTERS)
    with pytest.raises(errors.DiskFullError) as refused:
        space_of(FULL).admit(command, VOTERS)
    assert refused.value.retryable


@pytest.mark.parametrize("command", FREE, ids=lambda each: each.WhichOneof("action"))
def test_what_frees_room_is_taken(command: command_pb2.Command) -> None:
    """However full the disks are."""
    space_of(DiskUsage(GIB, 0), 2, 3).admit(command, VOTERS)


def test_a_full_disk_has_room_again_well_above_the_reserve() -> None:
    """It does not switch with every byte."""
    space, reserve_bytes = space_of(FULL), Reserve().of(FULL.total_bytes)
    space.look(DiskUsage(FULL.total_bytes, reserve_bytes))
    assert space.full
    space.look(DiskUsage(FULL.total_bytes, int(reserve_bytes * ROOM_AGAIN)))
    assert not space.full
    space.look(DiskUsage(FULL.total_bytes, reserve_bytes))
    assert not space.full


def test_a_majority_must_have_room() -> None:
    """One follower with a full disk stops nothing; two of three would run out of their reserve."""
    space_of(ROOMY, 2).admit(ADD[2], VOTERS)
    space_of(ROOMY, 7, 8).admit(ADD[2], VOTERS)  # of other shards
    with pytest.raises(errors.DiskFullError, match="2 of 3"):
        space_of(ROOMY, 2, 3).admit(ADD[2], VOTERS)


def test_a_caller_comes_back_soon_where_another_will_lead() -> None:
    """Else only after a while."""
    waits_ms = []
    for full_peers in ((), (2, 3)):
        with pytest.raises(errors.DiskFullError) as refused:
            space_of(FULL, *full_peers).admit(ADD[2], VOTERS)
        waits_ms.append(refused.value.retry_after_ms)
    assert waits_ms == [1_000, 5_000]


@pytest.mark.parametrize(
    ("full", "takers"),
    [((), {2, 3}), ((1,), {2, 3}), ((2,), {3}), ((2, 3), set()), ((1, 2, 3), set())],
)
def test_the_controller_gives_a_full_node_nothing_to_lead(
    full: tuple[int, ...], takers: set[int]
) -> None:
    """Where n1 leads all, others with room get their share."""
    cluster = seen()
    voters = {group.id: [each.replica_id for each in group.replicas] for group in cluster.groups}
    for node, report in cluster.reports.items():
        report.disk_full = node in full
        for told in report.replicas:
            told.leader, told.configuration_committed = voters[told.group][0], True
            told.configuration.voters.extend(voters[told.group])
            for each in told.progress:
                each.match_index = told.last_index
    found = [each for each in plan(cluster) if isinstance(each, HandOver)]
    assert {node_of(each.to) for each in found} <= takers
    assert bool(found) is bool(takers)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """All three are up, and one leads."""
    async with all_up(tmp_path) as found:
        yield found


@pytest.fixture
def fill(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, DiskUsage], None]:
    """Have a node's disk be like this from now on."""

    def be(number: int, usage: DiskUsage) -> None:
        monkeypatch.setattr(nodes.store(number)._backend, "usage", lambda: usage)

    return be


async def told_full(nodes: Nodes, *numbers: int) -> None:
    """Every other node has heard of these that their disks are full."""
    hosts = {number: node._host for number, node in nodes.running.items()}
    await until(
        lambda: all(
            host is not None and host.full_peers == set(numbers) - {number}
            for number, host in hosts.items()
        )
    )


async def test_a_leader_with_a_full_disk_hands_over_and_none_takes_over_that_is_full(
    nodes: Nodes, fill: Callable[[int, DiskUsage], None]
) -> None:
    """Within 3 s to the one that has room; once all are full nobody does, and leadership rests.
    New mail is refused then, deletes are taken, and with room again all is.
    """
    async with nodes.client() as mail:
        await mail.create_account("alice")
        stored = (await mail.deliver(b"Subject: 1\r\n\r\n", to=["alice"])).recipients[0]
        first = nodes.leader
        second, third = (number for number in (1, 2, 3) if number != first)
        fill(second, FULL)
        await told_full(nodes, second)
        fill(first, FULL)
        await until(lambda: nodes.leader == third, within_s=3.0)
        await told_full(nodes, first, second)
        with pytest.raises(errors.DiskFullError):
            await mail.deliver(b"Subject: 2\r\n\r\n", to=["alice"])
        fill(third, FULL)
        await told_full(nodes, 1, 2, 3)
        assert await led_by(nodes, within_s=3.0) == {third}
        await refused_but_for_deletes(mail, stored.message_id)
        for number in (1, 2, 3):
            fill(number, ROOMY)
        await told_full(nodes)
        await until(lambda: not any(each._space.full for each in nodes.running.values()))  # type: ignore[union-attr]
        await mail.deliver(b"Subject: 3\r\n\r\n", to=["alice"])


async def led_by(nodes: Nodes, within_s: float) -> set[int]:
    """Who leads in that time."""
    seen, steps = set(), 20
    for _ in range(steps):
        seen.add(nodes.leader)
        await asyncio.sleep(within_s / steps)
    return seen


async def refused_but_for_deletes(mail: AsyncClient, message_id: str) -> None:
    """New mail is, and the message goes."""
    with pytest.raises(errors.DiskFullError):
        await mail.deliver(b"Subject: 4\r\n\r\n", to=["alice"])
    await mail.expunge_messages("alice", [message_id])
    assert not [each async for each in mail.iter_messages("alice")]
