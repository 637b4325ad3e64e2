"""mailraft certs: the private authority of a cluster and its certificates."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from mailraft.cluster.certs import Step
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, guarded
from mailraft.wire.access import Role

app = typer.Typer(
    help="Certificates: init, issue, list, rotate.", no_args_is_help=True, rich_markup_mode=None
)

FolderOption = Annotated[Path, typer.Option("--dir", metavar="FOLDER", help="Where they are.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Tell what would be made.")]
DEFAULT_FOLDER = Path(".mailraft/certs")
_NEXT = {
    Step.TRUST: "next: copy ca.pem to every host, then: mailraft certs rotate --authority sign",
    Step.SIGN: "next: copy ca.pem and its certificates to every host, then: --authority forget",
    Step.FORGET: "last: copy ca.pem to every host",
}


@app.command()
def init(
    folder: FolderOption = DEFAULT_FOLDER,
    nodes: Annotated[int, typer.Option(min=0, help="Make node-1 to node-N.")] = 3,
    host: Annotated[
        list[str], typer.Option("--host", help="One more name or address; may be repeated.")
    ] = [],  # noqa: B006  # typer copies it
    output: OutputOption = Output.TABLE,
) -> None:
    """Make an authority and certificates, each unless it is there. Keep ca.key safe.

    Example: mailraft certs init --dir certs --nodes 3 --host mail.example.org
    """
    from mailraft.cluster import certs

    with guarded(output):
        made = certs.ensure(folder, certs.names_of(range(1, nodes + 1)), hosts=host)
    if output is Output.JSON:
        emit_json({"folder": str(folder), "made": made})
    elif made:
        typer.echo(f"made in {folder}: {', '.join(made)}")
    else:
        typer.echo(f"all are in {folder} already")


@app.command()
def issue(
    name: Annotated[str, typer.Argument(help="File name, and who it is in the audit log.")],
    role: Annotated[Role, typer.Option("--role", help="What it may call.")] = Role.SERVICE,
    folder: FolderOption = DEFAULT_FOLDER,
    host: Annotated[
        list[str], typer.Option("--host", help="One more name or address; may be repeated.")
    ] = [],  # noqa: B006  # typer copies it
    accounts: Annotated[
        list[str],
        typer.Option(
            "--accounts",
            metavar="PATTERN",
            help="Accounts that a service is limited to, * for anything; may be repeated.",
            show_default="all",
        ),
    ] = [],  # noqa: B006  # as above
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make one certificate, in place of the one by that name.

    Example: mailraft certs issue imap-1 --role service --dir certs

    Example: mailraft certs issue team --accounts 'team-*' --dir certs
    """
    from mailraft.cluster import certs

    with guarded(output):
        if not dry_run:
            certs.issue(folder, name, role, hosts=host, accounts=accounts)
    _tell_made(folder, [name], output, dry_run=dry_run)


@app.command()
def rotate(
    folder: FolderOption = DEFAULT_FOLDER,
    authority: Annotated[
        Step | None,
        typer.Option("--authority", help="A step to a new authority.", show_default=False),
    ] = None,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make every certificate again. Processes take them up without a restart.

    A new authority takes three steps: trust, sign, forget. Give every host the files of one step
    before you take the next.

    Example: mailraft certs rotate --dir certs

    Example: mailraft certs rotate --authority trust --dir certs
    """
    from mailraft.cluster import certs

    with guarded(output):
        if authority is None:
            made = certs.rotate(folder, dry_run=dry_run)
        else:
            made = certs.roll(folder, authority, dry_run=dry_run)
    _tell_made(folder, made, output, dry_run=dry_run)
    if output is Output.TABLE and authority is not None and not dry_run:
        typer.echo(_NEXT[authority])


def _tell_made(folder: Path, made: list[str], output: Output, *, dry_run: bool) -> None:
    if output is Output.JSON:
        emit_json({"folder": str(folder), "made": made, "dry_run": dry_run})
    else:
        typer.echo(f"{'would be ' * dry_run}made in {folder}: {', '.join(made)}")


@app.command("list")
def list_(folder: FolderOption = DEFAULT_FOLDER, output: OutputOption = Output.TABLE) -> None:
    """List certificates with the days that are left.

    Example: mailraft certs list --dir certs
    """
    from mailraft.cluster import certs

    with guarded(output):
        found = certs.inspect(folder)
    now = dt.datetime.now(dt.UTC)
    if output is Output.JSON:
        emit_json(
            [
                {
                    "name": each.name,
                    "role": each.role,
                    "hosts": list(each.hosts),
                    "accounts": list(each.accounts),
                    "not_after": each.not_after.isoformat(),
                    "days_left": each.days_left(now),
                    "sha256": each.sha256,
                }
                for each in found
            ]
        )
        return
    rows = [
        (
            each.name,
            each.role,
            each.days_left(now),
            each.sha256[:16],
            ",".join(each.accounts) or "all" * (each.role == Role.SERVICE),
            ",".join(each.hosts),
        )
        for each in found
    ]
    emit_table(("NAME", "ROLE", "DAYS", "SHA256", "ACCOUNTS", "HOSTS"), rows)
