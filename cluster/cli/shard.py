"""mailraft shard: list, show and move them, and say who leads."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.operating import (
    JOB_DEADLINE_S,
    DryRunOption,
    NoWaitOption,
    Session,
    ShardArgument,
    TimeoutOption,
    operating,
)
from mailraft.cluster.errors import ExitCode, NotReadyError

if TYPE_CHECKING:
    from mailraft.cluster.picture import Picture
    from mailraft.v1 import cluster_pb2

app = typer.Typer(
    help="Shards: list, show, move, transfer-leader.", no_args_is_help=True, rich_markup_mode=None
)

LEADER_DEADLINE_S = 10.0
LEADER_POLL_S = 0.1


@app.command("list")
@operating
async def list_(
    it: Session,
    node: Annotated[str, typer.Option(metavar="NODE", help="Only with a replica there.")] = "",
    wrong: Annotated[bool, typer.Option("--wrong", help="Only those that are not ok.")] = False,
) -> None:
    """List the shards: state, leader, where the replicas are.

    Example: mailraft shard list --node n3
    """
    from mailraft.cluster.cli import describe

    picture = await it.picture()
    number = picture.node(node).node.id if node else 0
    shown = [
        each
        for each in picture.told.shards
        if (not number or any(at.node_id == number for at in each.shard.replicas))
        and (not wrong or describe.shard_state(each) != "ok")
    ]
    it.tell(picture.shard_counts, [describe.shard(picture, each) for each in shown])
    rows: list[tuple[object, ...]] = [
        (
            describe.shard_name(each.shard.id),
            describe.shard_state(each),
            _leader(picture, each),
            describe.live(each),
            ",".join(picture.name(at.node_id) for at in each.shard.replicas),
        )
        for each in shown
    ]
    it.table(("SHARD", "STATE", "LEADER", "LIVE", "REPLICAS"), rows)


@app.command()
@operating
async def show(it: Session, shard: ShardArgument) -> None:
    """Show one shard and its replicas. Exit status 1: under-replicated, 3: no leader.

    Example: mailraft shard show s17
    """
    from mailraft.cluster.cli import describe

    picture = await it.picture()
    found = picture.shard(shard)
    state = describe.shard_state(found)
    line = (
        f"{describe.shard_name(shard)} {state} leader={_leader(picture, found)} "
        f"term={found.shard.leader.term} applied={found.commit_index} live={describe.live(found)}"
    )
    it.tell(line, describe.shard(picture, found))
    rows: list[tuple[object, ...]] = []
    for replica, status in zip(found.shard.replicas, found.replicas, strict=True):
        role = describe.role(replica)
        known = describe.behind(found)[replica.replica_id]
        behind = "-" if known is None else known
        told = describe.replica_state(status)
        name = picture.name(replica.node_id)
        rows.append((name, role, told, status.applied_index, behind, hex(replica.replica_id)))
    it.table(("NODE", "ROLE", "STATE", "APPLIED", "BEHIND", "REPLICA"), rows)
    codes = {"ok": ExitCode.OK, "under-replicated": ExitCode.FAILED}
    raise typer.Exit(codes.get(state, ExitCode.UNAVAILABLE))


@app.command()
@operating
async def move(
    it: Session,
    shard: ShardArgument,
    source: Annotated[str, typer.Option("--from", metavar="NODE", help="Where it is.")],
    to: Annotated[
        str, typer.Option(metavar="NODE", help="Where to. Default: placement chooses.")
    ] = "",
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = JOB_DEADLINE_S,
    dry_run: DryRunOption = False,
) -> None:
    """Move one replica of a shard from a node to another, while it serves.

    The next rebalance may move it back: placement wants what it wants.

    Example: mailraft shard move s17 --from n1 --to n4
    """
    from mailraft.cluster.cli import describe
    from mailraft.v1 import job_pb2

    picture = await it.picture()
    _replica_on(picture, picture.shard(shard), source)
    begin = picture.node(source).node.id
    end = picture.node(to).node.id if to else 0
    spec = job_pb2.JobSpec(move=job_pb2.MoveSpec(shard=shard, from_node_id=begin, to_node_id=end))
    job = await it.begun(it.operator.move(shard, begin, end, validate=dry_run), spec)
    what = describe.move(picture, job.spec.move)
    described = {
        "shard": shard,
        "from": begin,
        "to": job.spec.move.to_node_id,
        "job": "" if dry_run else job.id,
    }
    if dry_run:
        it.tell(what, described, dry=True)
    elif no_wait:
        it.tell(f"{what} begins: job {job.id}", described)
    else:
        job = await it.ended(job, f"move {what}", timeout)
        took_s = describe.took_s(job)
        it.tell(f"{what} in {took_s:.1f} s", {**described, "took_s": took_s})


@app.command("transfer-leader")
@operating
async def transfer_leader(
    it: Session,
    shard: ShardArgument,
    to: Annotated[
        str, typer.Option(metavar="NODE", help="To whom. Default: who is furthest ahead.")
    ] = "",
    dry_run: DryRunOption = False,
) -> None:
    """Let another replica lead a shard. No request is lost.

    The controller evens leaders out, and may give it back later.

    Example: mailraft shard transfer-leader s17 --to n2
    """
    from mailraft.cluster.cli import describe

    picture = await it.picture()
    found = picture.shard(shard)
    before = found.shard.leader.node_id
    replica = _replica_on(picture, found, to) if to else 0
    began_s = time.monotonic()
    await it.operator.transfer(shard, replica, validate=dry_run)
    name = describe.shard_name(shard)
    described = {"shard": shard, "leader_before": before}
    if dry_run:
        target = picture.name(picture.node(to).node.id) if to else "another"
        it.tell(f"{name} leader {_leader(picture, found)}→{target}", described, dry=True)
        return
    after = await _leader_after(it, shard, found.shard.leader, replica)
    took_s = time.monotonic() - began_s
    it.tell(
        f"{name} leader {_leader(picture, found)}→{picture.name(after)} in {took_s:.1f} s",
        {**described, "leader": after, "took_s": round(took_s, 3)},
    )


async def _leader_after(
    it: Session, shard: int, before: cluster_pb2.LeaderHint, replica: int
) -> int:
    """The node that leads once that is news. Raises NotReadyError."""
    until_s = time.monotonic() + LEADER_DEADLINE_S
    while time.monotonic() < until_s:
        told = (await it.picture()).shard(shard).shard.leader
        if told.replica_id == replica or (told.node_id and told.term > before.term):
            return told.node_id
        await asyncio.sleep(LEADER_POLL_S)
    raise NotReadyError(
        f"nobody was seen to lead shard {shard} anew within {LEADER_DEADLINE_S:.0f} s",
        f"see: mailraft shard show s{shard}",
    )


def _replica_on(picture: Picture, status: cluster_pb2.ShardStatus, node: str) -> int:
    """Raises NoSuchThingError."""
    from mailraft.cluster.cli import describe
    from mailraft.cluster.picture import NoSuchThingError

    number = picture.node(node).node.id
    for replica in status.shard.replicas:
        if replica.node_id == number:
            return replica.replica_id
    there = " ".join(picture.name(each.node_id) for each in status.shard.replicas)
    what = f"{node} has no replica of {describe.shard_name(status.shard.id)}"
    raise NoSuchThingError(what, f"these have one: {there}")


def _leader(picture: Picture, status: cluster_pb2.ShardStatus) -> str:
    return picture.name(status.shard.leader.node_id) if status.shard.leader.node_id else "NONE"
