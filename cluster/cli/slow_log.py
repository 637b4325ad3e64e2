"""mailraft slow-log: which calls were slow, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mailraft.cluster.cli.connect import LOCAL_FOLDER
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, guarded
from mailraft.cluster.errors import SettingsError
from mailraft.wire.slow_log import EVENT

FilesArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FILE]...",
        help="Logs of processes, as JSON lines. Default: those of the cluster in ./.mailraft.",
        show_default=False,
    ),
]


def slow_log(
    files: FilesArgument = None,
    reason: Annotated[
        str, typer.Option("--reason", help="Only these: flush, queue, stall, ...")
    ] = "",
    at_least_ms: Annotated[
        float, typer.Option("--at-least-ms", min=0, help="Only what took so long.")
    ] = 0.0,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="The last so many.")] = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show calls that took longer than `slow_call_ms`, and what they waited for.

    The reason is the longest wait: queue (for a turn of the shard), flush (of the leader's disk),
    replication (for a majority), apply, level (for replicas beyond a majority), read index; stall:
    the event loop was held up; handler, nodes: none of these.

    Example: mailraft slow-log --reason flush

    Example: mailraft slow-log n1.log -o json
    """
    with guarded(output):
        found = [
            call
            for call in _slow_calls(files or sorted((LOCAL_FOLDER / "logs").glob("*.log")))
            if call["took_ms"] >= at_least_ms and reason in ("", call["reason"])
        ]
    found.sort(key=lambda call: str(call.get("timestamp", "")))
    if output is Output.JSON:
        emit_json(found[-count:])
        return
    reasons = Counter(call["reason"] for call in found)
    counted = " ".join(f"{name.replace(' ', '_')}={number}" for name, number in reasons.items())
    typer.echo(f"slow_calls={len(found)} {counted}".rstrip())
    if found:
        emit_table(
            ("TIME", "PROCESS", "CALL", "ASKED", "MS", "REASON", "WAITS", "SHARD", "REQUEST"),
            [_row(call) for call in found[-count:]],
        )


def _slow_calls(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in files:
        try:
            with path.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if EVENT in line and (call := _parsed(line)) is not None:
                        yield call
        except OSError as error:
            raise SettingsError(f"cannot read {path}: {error.strerror}") from None


def _parsed(line: str) -> dict[str, Any] | None:
    """None: a line of something else, or one that was cut."""
    try:
        call = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(call, dict) and {"method", "took_ms", "reason", "waits_ms"} <= call.keys()
    return call if whole and call.get("event") == EVENT else None


def _row(call: dict[str, Any]) -> tuple[object, ...]:
    waits = " ".join(f"{name}={wait_ms:g}" for name, wait_ms in call["waits_ms"].items())
    process = f"n{call['node']}" if "node" in call else call.get("process", "")
    shard = call.get("shard")
    return (
        call.get("timestamp", ""),
        process,
        call["method"],
        call["asked"],
        round(call["took_ms"]),
        call["reason"],
        waits or "-",
        "-" if shard is None else shard,
        call.get("request_id", "-"),
    )
