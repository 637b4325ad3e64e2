"""mailraft rebalance: bring replicas to where placement wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.operating import (
    JOB_DEADLINE_S,
    DryRunOption,
    NoWaitOption,
    Session,
    TimeoutOption,
    operating,
)

if TYPE_CHECKING:
    from mailraft.cluster.picture import Picture
    from mailraft.v1 import admin_pb2, job_pb2

app = typer.Typer(
    help="Rebalance: plan, start, pause, limit.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
@operating
async def plan(it: Session) -> None:
    """Show what a rebalance would move, and change nothing. Bytes are about.

    Skew is the load of the fullest node over its share: 1.00 is even.

    Example: mailraft rebalance plan
    """
    await _tell_plan(it, await it.operator.rebalance(validate=True))


@app.command()
@operating
async def start(
    it: Session,
    limit: Annotated[
        int, typer.Option(min=0, max=64, help="Moves at once; 0: as `rebalance limit` says.")
    ] = 0,
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = JOB_DEADLINE_S,
    dry_run: DryRunOption = False,
) -> None:
    """Move replicas to where placement wants them, while all is served.

    Example: mailraft rebalance start --limit 1
    """
    from mailraft.cluster.cli import describe
    from mailraft.v1 import job_pb2

    if dry_run:
        await _tell_plan(it, await it.operator.rebalance(concurrent=limit, validate=True))
        return
    settings = await it.operator.settings()
    skew_before = _skew(await it.picture(), settings, ())

    async def begin() -> job_pb2.Job:
        return (await it.operator.rebalance(concurrent=limit)).job

    spec = job_pb2.JobSpec(rebalance=job_pb2.RebalanceSpec(concurrent_moves=limit))
    job = await it.begun(begin(), spec)
    described = {"job": job.id, "skew_before": skew_before}
    if no_wait:
        it.tell(f"rebalance begins: job {job.id}", described)
        return
    job = await it.ended(job, "rebalance", timeout)
    skew = _skew(await it.picture(), settings, ())
    moved, took_s = job.progress.steps_total, describe.took_s(job)
    it.tell(
        f"{moved} shards moved in {took_s:.1f} s, skew {skew_before:.2f}→{skew:.2f}",
        {**described, "moved": moved, "skew": skew, "took_s": took_s},
    )


@app.command()
@operating
async def pause(it: Session, dry_run: DryRunOption = False) -> None:
    """Begin no more moves: cancels the job of the rebalance. Those that run come to their end.

    `mailraft rebalance start` goes on with what is left.

    Example: mailraft rebalance pause
    """
    running = [
        each for each in await it.operator.jobs(open_only=True) if each.spec.HasField("rebalance")
    ]
    if not running:
        it.tell("no rebalance is under way", {"jobs": []})
        return
    children = 0
    for job in running:
        children += len(await it.operator.jobs(open_only=True, parent=job.id))
        if not dry_run:
            await it.operator.cancel(job.id)
    ids = [each.id for each in running]
    it.tell(
        f"{' '.join(ids)} stops, moves that come to their end: {children}; "
        "go on: mailraft rebalance start",
        {"jobs": ids, "moves_under_way": children},
        dry=dry_run,
    )


@app.command()
@operating
async def limit(
    it: Session,
    moves: Annotated[int, typer.Argument(min=1, max=64, metavar="MOVES", help="At once.")],
    dry_run: DryRunOption = False,
) -> None:
    """Set how many moves there may be at once, also of a rebalance that runs.

    Example: mailraft rebalance limit 4
    """
    from mailraft.v1 import admin_pb2

    before = (await it.operator.settings()).concurrent_moves
    wanted = admin_pb2.Settings(concurrent_moves=moves)
    await it.operator.change_settings(wanted, ["concurrent_moves"], validate=dry_run)
    described = {"concurrent_moves_before": before, "concurrent_moves": moves}
    it.tell(f"moves at once {before}→{moves}", described, dry=dry_run)


async def _tell_plan(it: Session, planned: admin_pb2.RebalanceResponse) -> None:
    from mailraft.cluster.cli import describe

    picture, settings = await it.picture(), await it.operator.settings()
    before, after = _skew(picture, settings, ()), _skew(picture, settings, planned.moves)
    size_bytes = _bytes(picture, planned.moves)
    line = f"plan: {len(planned.moves)} moves"
    line += f", about {describe.size(size_bytes)}" if planned.moves else ""
    moves: list[dict[str, object]] = [
        {"shard": each.shard, "from": each.from_node_id, "to": each.to_node_id}
        for each in planned.moves
    ]
    described = {"moves": moves, "bytes": size_bytes, "skew_before": before, "skew": after}
    it.tell(f"{line}, skew {before:.2f}→{after:.2f}", described)
    rows: list[tuple[object, ...]] = [
        (
            describe.shard_name(each.shard),
            picture.name(each.from_node_id) if each.from_node_id else "-",
            picture.name(each.to_node_id) if each.to_node_id else "-",
        )
        for each in planned.moves
    ]
    it.table(("SHARD", "FROM", "TO"), rows)


def _skew(
    picture: Picture, settings: admin_pb2.Settings, moves: Sequence[job_pb2.MoveSpec]
) -> float:
    """Once the moves are made. 0: the nodes cannot hold the replicas apart."""
    from mailraft.cluster import placement
    from mailraft.cluster.topology import Node, PlacementError

    held = {
        each.shard.id: {replica.node_id for replica in each.shard.replicas}
        for each in picture.shards
    }
    for move in moves:
        if move.shard in held:
            held[move.shard] -= {move.from_node_id}
            held[move.shard] |= {move.to_node_id} - {0}
    nodes = [Node.of(each.node) for each in picture.nodes]
    hosts = len({node.host_key for node in nodes if node.takes})
    replication = max(1, min(settings.replicas_per_shard, hosts))
    try:
        made = {shard: tuple(sorted(each)) for shard, each in held.items()}
        return round(placement.skew(made, nodes, replication), 3)
    except PlacementError:
        return 0.0


def _bytes(picture: Picture, moves: Sequence[job_pb2.MoveSpec]) -> int:
    """What new replicas are copied, about: as much each as those of a node have on average."""
    used = sum(each.disk_used_bytes for each in picture.nodes)
    replicas = sum(each.replicas for each in picture.nodes)
    copies = sum(bool(each.to_node_id) for each in moves)
    return used * copies // replicas if replicas else 0
