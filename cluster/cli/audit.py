"""mailraft audit: who was refused, and what operators did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mailraft.cluster.cli.connect import LOCAL_FOLDER
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, guarded
from mailraft.cluster.errors import SettingsError

app = typer.Typer(help="The audit log: tail.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def tail(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Audit logs of processes. Default: those of the cluster in ./.mailraft.",
            show_default=False,
        ),
    ] = None,
    refused: Annotated[bool, typer.Option("--refused", help="Only refusals.")] = False,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="The last so many.")] = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the last refusals and actions of operators, by time.

    What goes through a router is in its log and in that of the node that did it.

    Example: mailraft audit tail --refused -n 10

    Example: mailraft audit tail node-1.audit.jsonl -o json
    """
    with guarded(output):
        given = files or sorted(LOCAL_FOLDER.glob("*/audit.jsonl"))
        if not given:
            raise SettingsError(f"no audit logs in {LOCAL_FOLDER}", "name them: audit tail FILE...")
        lines = [each for path in given for each in _lines(path)]
    lines = [each for each in lines if each["outcome"] == "refused" or not refused]
    lines.sort(key=lambda each: str(each["time"]))
    if output is Output.JSON:
        emit_json(lines[-count:])
        return
    columns = ("time", "server", "outcome", "caller", "method", "reason")
    rows = [tuple(str(each.get(name, "")) for name in columns) for each in lines[-count:]]
    emit_table(tuple(name.upper() for name in columns), rows)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines, the last one may be half written; and whose they are, by the file's name."""
    of_one = path.name != "audit.jsonl"
    server = path.name.removesuffix(".audit.jsonl") if of_one else path.absolute().parent.name
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    for line in text.splitlines():
        try:
            yield {"server": server, **json.loads(line)}
        except ValueError:
            continue
