"""mailraft node: run one in the foreground; or list, add, drain, decommission and remove them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli import processes
from mailraft.cluster.cli.operating import (
    JOB_DEADLINE_S,
    DryRunOption,
    NodeArgument,
    NoWaitOption,
    Session,
    TimeoutOption,
    operating,
)
from mailraft.cluster.cli.output import Output
from mailraft.cluster.cli.processes import ConfigOption, ParentOption
from mailraft.cluster.errors import ExitCode, NotConfirmedError, SettingsError

if TYPE_CHECKING:
    from mailraft.v1 import cluster_pb2, job_pb2

Values = dict[str, str | int | float | bool | Path]
app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def node(
    context: typer.Context, config: ConfigOption = None, with_parent: ParentOption = False
) -> None:
    """Run a node here until SIGTERM or Ctrl-C; or list, add, drain, remove nodes.

    Example: mailraft node --config /etc/mailraft/node-1.toml
    """
    if context.invoked_subcommand is None:
        processes.node(config, with_parent)
    elif config is not None:
        raise typer.BadParameter("it is for a node that runs here", param_hint="--config")


@app.command("list")
@operating
async def list_(it: Session) -> None:
    """List the nodes: state, replicas, leaders, what they store.

    Example: mailraft node list
    """
    from mailraft.cluster.cli import describe

    picture = await it.picture()
    nodes = picture.nodes
    reachable = sum(each.reachable for each in nodes)
    line = (
        f"nodes={reachable}/{len(nodes)} replicas={sum(each.replicas for each in nodes)} "
        f"leads={sum(each.leaders for each in nodes)}"
    )
    it.tell(line, [describe.node(each) for each in nodes])
    it.table(describe.NODE_HEADERS, [describe.node_row(each) for each in nodes])


@app.command()
@operating
async def status(it: Session, node: NodeArgument) -> None:
    """Show one node and its replicas. Exit status 3: it is silent.

    Example: mailraft node status n3
    """
    from mailraft.cluster.cli import describe

    picture = await it.picture()
    found = picture.node(node)
    number = found.node.id
    rows: list[tuple[object, ...]] = []
    described = []
    for shard in picture.told.shards:
        for replica, state in zip(shard.shard.replicas, shard.replicas, strict=True):
            if replica.node_id == number:
                behind = describe.behind(shard)[replica.replica_id]
                told = describe.replica_state(state)
                shown = "-" if behind is None else behind
                rows.append((describe.shard_name(shard.shard.id), told, state.applied_index, shown))
                described.append({"shard": shard.shard.id, "state": told, "behind": behind})
    line = f"{found.node.name} {describe.node_state(found)}"
    line += f" replicas={found.replicas} leads={found.leaders}"
    if found.reachable:
        used, free = map(describe.size, (found.disk_used_bytes, found.disk_free_bytes))
        line += f" stores={used} free={free} lag={found.loop_lag_ms} ms"
        line += f" flush={found.flush_ms} ms"
    else:
        line += f" SILENT for {found.heard_age_ms / 1000:.0f} s"
    it.tell(line, {**describe.node(found), "shards": described})
    it.table(("SHARD", "REPLICA", "APPLIED", "BEHIND"), rows)
    raise typer.Exit(ExitCode.OK if found.reachable else ExitCode.UNAVAILABLE)


@app.command()
@operating
async def add(
    it: Session,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="1 to 63 characters of a-z 0-9 and -.")
    ],
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where others reach it.")],
    zone: Annotated[str, typer.Option(help="What may fail together. Default: its own.")] = "",
    host: Annotated[str, typer.Option(help="The machine. Default: its own.")] = "",
    weight: Annotated[
        float, typer.Option(min=0.001, max=100, help="Its share of replicas, relative to others.")
    ] = 1.0,
    write_config: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write node.toml and map.json for it there."),
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Admit a node, and tell how to start it. It stays empty until a rebalance.

    Again with the same name and address it is the same node, with the same number.

    Example: mailraft node add n4 10.0.0.4:7400 --zone b --write-config n4
    """
    from mailraft.v1 import cluster_pb2

    wanted = cluster_pb2.Node(
        name=name, address=address, zone=zone, host=host, weight_milli=round(weight * 1000)
    )
    if write_config is not None and (write_config / "node.toml").exists():
        hint = "name another folder, or leave --write-config out"
        raise SettingsError(f"{write_config / 'node.toml'} is there already", hint)
    admitted = await it.operator.add_node(wanted, validate=dry_run)
    described = {"node": admitted.id, "name": admitted.name, "address": admitted.address}
    line = f"{admitted.name} is node {admitted.id} at {admitted.address}"
    if write_config is not None and not dry_run:
        _write_config(write_config, await it.operator.newest_map(), _settings(it, admitted))
        described["folder"] = str(write_config)
    it.tell(line, described, dry=dry_run)
    if it.output is Output.TABLE and not dry_run:
        _tell_how_to_start(it, admitted, write_config)


def _write_config(folder: Path, told: cluster_pb2.ClusterMap, values: Values) -> None:
    """What `mailraft node --config` needs, but for its certificate."""
    from mailraft.cluster import mapfile, settings

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mapfile.save(folder / "map.json", told)
        settings.dump(folder / "node.toml", values)
    except OSError as error:
        raise SettingsError(f"cannot write into {folder}: {error.strerror}") from error


def _settings(it: Session, admitted: cluster_pb2.Node) -> Values:
    values: Values = {
        "node": admitted.id,
        "data_dir": Path("data"),
        "listen_address": admitted.address,
        "map_file": Path("map.json"),
    }
    if it.connection.certs is None:
        return {**values, "insecure": True}
    return {**values, "certs_folder": Path("certs")}


def _tell_how_to_start(it: Session, admitted: cluster_pb2.Node, folder: Path | None) -> None:
    where = folder or Path(admitted.name)
    steps = []
    if folder is None:
        steps.append(f"write its settings: give this command --write-config {where}")
    if it.connection.certs is not None:
        name = f"node-{admitted.id}"
        steps.append(f"make its certificate, where ca.key is: {CERTIFICATE.format(admitted.id)}")
        steps.append(f"put ca.pem, {name}.pem and {name}.key into {where / 'certs'}")
    steps.append(f"start it, on its host: mailraft node --config {where / 'node.toml'}")
    steps.append("give it its share: mailraft rebalance start")
    for at, step in enumerate(steps, 1):
        typer.echo(f"  {at}. {step}")


CERTIFICATE = "mailraft certs issue node-{} --role node --dir certs"


@app.command()
@operating
async def drain(
    it: Session,
    node: NodeArgument,
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = JOB_DEADLINE_S,
    dry_run: DryRunOption = False,
) -> None:
    """Take all leaders off a node, to stop it without a gap.

    Its replicas stay. It leads nothing until `mailraft node undrain`, also after a restart.

    Example: mailraft node drain n3
    """
    from mailraft.cluster.cli import describe
    from mailraft.v1 import job_pb2

    picture = await it.picture()
    before = picture.node(node)
    name, number = before.node.name, before.node.id
    spec = job_pb2.JobSpec(drain=job_pb2.DrainSpec(node_id=number))
    job = await it.begun(it.operator.drain(number, validate=dry_run), spec)
    described = {"node": number, "name": name, "leads_before": before.leaders}
    if dry_run:
        it.tell(f"{name} leaders {before.leaders}→0", described, dry=True)
        return
    if no_wait:
        it.tell(f"{name} drains: job {job.id}", {**described, "job": job.id})
        return
    job = await it.ended(job, f"drain {name}", timeout)
    after = (await it.picture()).node(node).leaders
    it.tell(
        f"{name} leaders {before.leaders}→{after} in {describe.took_s(job):.1f} s",
        {**described, "leads": after, "job": job.id, "took_s": describe.took_s(job)},
    )


@app.command()
@operating
async def undrain(it: Session, node: NodeArgument, dry_run: DryRunOption = False) -> None:
    """End a node's drain: it may lead again, and does soon.

    Example: mailraft node undrain n3
    """
    picture = await it.picture()
    found = picture.node(node).node
    told = await it.operator.undrain(found.id, validate=dry_run)
    it.tell(
        f"{told.name} active", {"node": told.id, "name": told.name, "state": "active"}, dry=dry_run
    )


@app.command()
@operating
async def decommission(
    it: Session,
    node: NodeArgument,
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = JOB_DEADLINE_S,
    dry_run: DryRunOption = False,
) -> None:
    """Move all replicas off a node; then it leaves.

    Its process ends by itself. `mailraft job cancel` ends it before: the node stays with what it
    has by then.

    Example: mailraft node decommission n3
    """
    from mailraft.v1 import job_pb2

    picture = await it.picture()
    before = picture.node(node)
    spec = job_pb2.JobSpec(decommission=job_pb2.DecommissionSpec(node_id=before.node.id))
    job = await it.begun(it.operator.decommission(before.node.id, validate=dry_run), spec)
    await _left(it, before, job, no_wait=no_wait, timeout=timeout, dry_run=dry_run)


@app.command()
@operating
async def remove(
    it: Session,
    node: NodeArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Needed: what only that node stored is given up.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask back.")] = False,
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = JOB_DEADLINE_S,
    dry_run: DryRunOption = False,
) -> None:
    """Strike out a node that is lost for good.

    Others get copies of its replicas. It must never come back. Refused while the node answers,
    and if a shard would lose its majority.

    Example: mailraft node remove n3 --force
    """
    picture = await it.picture()
    before = picture.node(node)
    name = before.node.name
    if not force and not dry_run:
        raise NotConfirmedError(
            f"{name} would be given up for good",
            f"if it runs: mailraft node decommission {name}; if it is lost: add --force",
        )
    if not yes and not dry_run and not _asked_back(name):
        raise NotConfirmedError("nothing was done", "add --yes to go on without a question")
    await it.operator.remove(before.node.id, validate=dry_run)
    job = None if dry_run else await _decommission_of(it, before.node.id)
    await _left(it, before, job, no_wait=no_wait, timeout=timeout, dry_run=dry_run)


def _asked_back(name: str) -> bool:
    """Without a terminal there is nobody to ask: no."""
    if not sys.stdin.isatty():
        return False
    return typer.confirm(f"Give up {name} and all that only it stores?", err=True)


async def _decommission_of(it: Session, number: int) -> job_pb2.Job | None:
    """The newest: one that had little to do is finished already."""
    for job in await it.operator.jobs():
        if job.spec.decommission.node_id == number:
            return job
    return None


async def _left(
    it: Session,
    before: cluster_pb2.NodeStatus,
    job: job_pb2.Job | None,
    *,
    no_wait: bool,
    timeout: float,
    dry_run: bool,
) -> None:
    """Tell how a node leaves, or left."""
    from mailraft.cluster.cli import describe

    name = before.node.name
    described = {"node": before.node.id, "name": name, "replicas": before.replicas}
    if dry_run or job is None:
        it.tell(f"{name} replicas {before.replicas}→0, and it leaves", described, dry=dry_run)
        return
    if no_wait:
        it.tell(f"{name} leaves: job {job.id}", {**described, "job": job.id})
        return
    job = await it.ended(job, f"{name} leaves", timeout)
    it.tell(
        f"{name} replicas {before.replicas}→0 in {describe.took_s(job):.1f} s; it has left",
        {**described, "job": job.id, "took_s": describe.took_s(job)},
    )
