"""mailraft debug bundle: what those who help need to see, in one archive."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailraft.cluster.cli.connect import (
    LOCAL_FOLDER,
    CertsOption,
    Connection,
    InsecureOption,
    ServerOption,
    find,
)
from mailraft.cluster.cli.operating import DryRunOption
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, guarded
from mailraft.cluster.errors import ClusterError, SettingsError

if TYPE_CHECKING:
    from mailraft.cluster.bundle import Bundle

app = typer.Typer(help="For those who help: bundle.", no_args_is_help=True, rich_markup_mode=None)
ASK_S_MAX = 10.0
JOBS_MAX = 200


@app.command()
def bundle(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="The archive, .tar.gz; must not be there. Default: named by the time.",
            show_default=False,
        ),
    ] = None,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact/--no-redact",
            help="Without addresses of people and machines, callers, and words of exceptions.",
        ),
    ] = True,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Settings of a process: theirs, its audit log and its metrics go in; again for "
            "each. Default: the cluster in ./.mailraft.",
            show_default=False,
        ),
    ] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(
            "--log",
            metavar="FILE",
            help="A log as JSON lines, its end and its slow calls; again for each. Default: as "
            "with --config.",
            show_default=False,
        ),
    ] = None,
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Collect status, settings, metrics and logs into one archive.

    Versions, jobs and audit logs too. Never in it: keys, certificates, mail, names of accounts.
    What cannot be had is named in missing.json, so it serves also while the cluster does not.
    `journalctl -u mailraft-node@1 -o cat > node-1.log` makes a log of a process that systemd runs.
    Look into it before you send it.

    Example: mailraft debug bundle --redact

    Example: mailraft debug bundle --config node-1.toml --log node-1.log
    """
    now = dt.datetime.now(dt.UTC)
    path = file or Path(f"mailraft-debug-{now:%Y%m%dT%H%M%SZ}.tar.gz")
    with guarded(output):
        if not path.name.endswith(".tar.gz"):
            raise SettingsError(f"{path} is no name of a .tar.gz")
        made = asyncio.run(_collected(server, certs, insecure, redact, config, log))
        size_bytes = 0
        if not dry_run:
            try:
                size_bytes = made.write(path)
            except OSError as error:
                raise SettingsError(f"cannot write {path}: {error.strerror}") from error
    _tell(path, size_bytes, made, dry_run, output)


async def _collected(
    server: str | None,
    certs: Path | None,
    insecure: bool,
    redact: bool,
    configs: list[Path] | None,
    logs: list[Path] | None,
) -> Bundle:
    from mailraft.cluster import bundle as making
    from mailraft.cluster.bundle import Bundle
    from mailraft.cluster.redaction import Redactor

    local = configs is None and logs is None
    if configs is None:
        configs = sorted(LOCAL_FOLDER.glob("*/*.toml")) if local else []
    if logs is None:
        logs = sorted((LOCAL_FOLDER / "logs").glob("*.log")) if local else []
    told: dict[str, Any] = {}
    try:
        connection = find(server, certs, insecure, "admin")
        told = await _asked(connection)
    except ClusterError as error:
        told["missing"] = {"cluster": error.message}
    made = Bundle(Redactor(_hosts(told.get("map.json"))) if redact else None)
    made.missing |= told.pop("missing", {})
    made.document("versions.json", making.versions())
    for name, value in told.items():
        made.document(name, value)
    making.add_configurations(made, configs)
    making.add_logs(made, logs)
    making.add_audits(made, [each for each in map(_audit_of, configs) if each is not None])
    making.add_metrics(made, await _metrics(configs))
    return made


async def _asked(connection: Connection) -> dict[str, Any]:
    """What the cluster tells, by the names of files; what it does not tell is `missing`."""
    from google.protobuf.json_format import MessageToDict

    from mailraft.cluster.cli import describe
    from mailraft.cluster.operator import Operator
    from mailraft.cluster.picture import look
    from mailraft.wire import errors

    told: dict[str, Any] = {}
    missing: dict[str, str] = {}

    async def take(name: str, asking: Any) -> None:
        try:
            told[name] = await asking
        except errors.MailraftError as error:
            missing[name] = f"{error.name}: {error.message}"

    def plain(message: Any) -> Any:
        return MessageToDict(message, preserving_proto_field_name=True)

    async with Operator(
        connection.target, connection.credentials, deadline_s=ASK_S_MAX
    ) as operator:

        async def status() -> dict[str, Any]:
            picture = await look(operator)
            jobs = [describe.job(picture, each) for each in (await operator.jobs())[:JOBS_MAX]]
            return {
                "status": picture.word,
                "epoch": picture.told.epoch,
                "nodes": [describe.node(each) for each in picture.nodes],
                "shards": [describe.shard(picture, each) for each in picture.shards],
                "alarms": [describe.alarm(each) for each in picture.told.alarms],
                "jobs": jobs,
            }

        async def the_map() -> Any:
            return plain(await operator.map())

        async def the_settings() -> Any:
            return plain(await operator.settings())

        await take("map.json", the_map())
        await take("status.json", status())
        await take("settings.json", the_settings())
    told["missing"] = missing
    return told


def _hosts(cluster_map: Any) -> dict[str, str]:
    """What stands for the machines: their nodes' names."""
    from mailraft.cluster.addresses import split_address

    found = {}
    for node in (cluster_map or {}).get("nodes", ()):
        host, _ = split_address(node["address"])
        found[host] = f"host-of-{node['name']}"
    return found


def _audit_of(config: Path) -> Path | None:
    from mailraft.cluster.bundle import audit_file_of

    try:
        return audit_file_of(config)
    except SettingsError:
        return None  # told as a configuration that is missing


async def _metrics(configs: list[Path]) -> dict[str, str | None]:
    """Pages of the processes with these settings."""
    from mailraft.cluster import settings
    from mailraft.cluster.bundle import name_of
    from mailraft.cluster.scrape import page_of

    found: dict[str, str | None] = {}
    for config in configs:
        try:
            loaded = settings.load(settings.kind_of(config), config)
        except SettingsError:
            continue
        if loaded.metrics_address is not None:
            found[name_of(config)] = await page_of(loaded.metrics_address)
    return found


def _tell(path: Path, size_bytes: int, made: Bundle, dry_run: bool, output: Output) -> None:
    from mailraft.cluster.cli import describe

    if output is Output.JSON:
        emit_json(
            {
                "file": str(path),
                "bytes": size_bytes,
                "redacted": made.redactor is not None,
                "files": sorted(made.files),
                "missing": made.missing,
            }
        )
        return
    kind = "redacted" if made.redactor is not None else "NOT redacted"
    line = f"{path}: {len(made.files)} files, {kind}"
    typer.echo(f"would be: {line}" if dry_run else f"{line}, {describe.size(size_bytes)}")
    for name, why in made.missing.items():
        typer.echo(f"  without {name}: {why}")
    if dry_run:
        for name in sorted(made.files):
            typer.echo(f"  {name}")
