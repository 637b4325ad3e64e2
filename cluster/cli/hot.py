"""mailraft hot: what the load is about now."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.operating import Session, operating
from mailraft.cluster.errors import ExitCode

if TYPE_CHECKING:
    import grpc

    from mailraft.cluster.asking import Asked
    from mailraft.internal.v1 import inspect_service_pb2

ASK_S_MAX = 5.0
COUNT_MAX = 100
_KINDS = ("accounts", "shards", "methods")


@operating
async def hot(
    it: Session,
    names: Annotated[
        bool,
        typer.Option("--names", help="Accounts by name; it goes into the audit logs."),
    ] = False,
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, max=COUNT_MAX, help="So many of each kind.")
    ] = 10,
) -> None:
    """Show which accounts, shards and methods carry the load now.

    Every node counts what it serves in intervals of 10 s, and the last whole interval is told.
    Accounts are shown as in log lines, by a keyed hash: the same on all nodes if they share a
    log_key_file, and `mailraft account log-name` makes it from a name. Exit status 3: a node is
    silent.

    Example: mailraft hot -n 5
    """
    from mailraft.cluster.asking import ask_nodes
    from mailraft.internal.v1 import inspect_service_pb2, inspect_service_pb2_grpc

    told = await it.operator.map()

    async def ask(channel: grpc.aio.Channel) -> inspect_service_pb2.Hottest:
        stub = inspect_service_pb2_grpc.InspectServiceStub(channel)
        if names:
            by_name = inspect_service_pb2.HotNamedRequest(cluster_id=told.cluster_id, count=count)
            return (await stub.HotNamed(by_name, timeout=ASK_S_MAX)).hottest
        request = inspect_service_pb2.HotRequest(cluster_id=told.cluster_id, count=count)
        return (await stub.Hot(request, timeout=ASK_S_MAX)).hottest

    asked = await ask_nodes(told, it.connection.credentials, ask)
    rates = {kind: _rates(asked, kind)[:count] for kind in _KINDS}
    total_s = sum(_per_s(each.total, each.interval_ms) for each in asked.answers.values())
    line = f"nodes={len(asked.answers)} operations={total_s:.1f}/s"
    if asked.silent:
        line += f" silent={','.join(asked.silent)}"
    described = {
        "operations_per_s": round(total_s, 1),
        "silent": asked.silent,
        **{kind: [_described(each) for each in found] for kind, found in rates.items()},
    }
    it.tell(line, described)
    for kind in _KINDS:
        rows: list[tuple[object, ...]] = [
            (_shown(kind, name), node, f"{rate:.1f}", _share(rate, total_s))
            for rate, name, node in rates[kind]
        ]
        it.table((kind.removesuffix("s").upper(), "NODE", "A SECOND", "SHARE"), rows)
    raise typer.Exit(ExitCode.UNAVAILABLE if asked.silent else ExitCode.OK)


def _shown(kind: str, name: str) -> str:
    return f"s{name}" if kind == "shards" else name.removeprefix("mailraft.internal.v1.")


def _rates(asked: Asked[inspect_service_pb2.Hottest], kind: str) -> list[tuple[float, str, str]]:
    """The most first, each with the nodes that serve it."""
    rates: dict[str, float] = defaultdict(float)
    nodes: dict[str, list[str]] = defaultdict(list)
    for node, answer in asked.answers.items():
        for item in getattr(answer, kind):
            rates[item.name] += _per_s(item.count, answer.interval_ms)
            nodes[item.name].append(node)
    found = ((rate, name, ",".join(nodes[name])) for name, rate in rates.items())
    return sorted(found, key=lambda each: (-each[0], each[1]))


def _per_s(count: int, interval_ms: int) -> float:
    return count * 1000 / interval_ms if interval_ms else 0.0


def _share(rate: float, total: float) -> str:
    return f"{rate / total:.0%}" if total else "-"


def _described(found: tuple[float, str, str]) -> dict[str, object]:
    rate, name, nodes = found
    return {"name": name, "per_s": round(rate, 1), "nodes": nodes.split(",")}
