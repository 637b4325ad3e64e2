"""The slow log names what a call waited for: found by making exactly that slow."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from mailraft.client import AsyncClient
from mailraft.cluster import logs
from mailraft.cluster.cli import app
from mailraft.cluster.levels import LogLevel
from mailraft.v1 import delivery_pb2
from mailraft.wire import observed, slow_log
from mailraft.wire.observed import ServedCall
from mailraft.wire.slow_log import LINES_PER_S_MAX, SlowLog
from three_nodes import Nodes, until

SLOW_S = 0.3
THRESHOLD_MS = 150


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """All three are up, and one leads. What takes longer than THRESHOLD_MS is slow."""
    found = Nodes(tmp_path, slow_call_ms=THRESHOLD_MS)
    for number in (1, 2, 3):
        await found.start(number)
    await until(lambda: found.leader != 0)
    yield found
    for number in list(found.running):
        await found.stop(number)


async def reasons(
    nodes: Nodes, caplog: pytest.LogCaptureFixture, slow_down: Callable[[], None]
) -> list[str]:
    """Of a delivery's slow line, or lines, once something was made slow."""
    async with AsyncClient(nodes.map.nodes[nodes.leader - 1].address, insecure=True) as mail:
        await mail.create_account("alice")
        await until(nodes.alike)
        caplog.clear()
        slow_down()
        await mail.deliver(b"Subject: slow\r\n\r\n", to=["alice"])
    found = [each for each in caplog.records if each.name == "mailraft.slow"]
    return [each.reason for each in found if each.method == "MessageService/DeliverMessages"]  # type: ignore[attr-defined]  # extra


def slow(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, later."""

    def later(*arguments: Any) -> Any:
        time.sleep(SLOW_S)
        return function(*arguments)

    return later


def slow_disks(nodes: Nodes, numbers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flush on these nodes takes long; the thread that flushes is not the loop's."""
    for number in numbers:
        store = nodes.store(number)
        monkeypatch.setattr(store, "flush", slow(store.flush))


async def test_flush(
    nodes: Nodes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All disks are slow: without the leader's own there is no majority sooner either."""
    told = await reasons(nodes, caplog, lambda: slow_disks(nodes, [1, 2, 3], monkeypatch))
    assert told == ["flush"]


async def test_replication(
    nodes: Nodes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disks of the followers are slow, and the leader's is not."""
    others = [number for number in (1, 2, 3) if number != nodes.leader]
    told = await reasons(nodes, caplog, lambda: slow_disks(nodes, others, monkeypatch))
    assert told == ["replication"]


async def test_apply(
    nodes: Nodes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader's state machine takes long."""
    (replica,) = nodes.running[nodes.leader].replicas()
    apply = replica.apply
    told = await reasons(
        nodes, caplog, lambda: monkeypatch.setattr(replica, "apply", slow(apply), raising=True)
    )
    assert told == ["apply"]


async def test_stall(
    nodes: Nodes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else holds up the event loop while the entry is being flushed."""
    loop, store = asyncio.get_running_loop(), nodes.store(nodes.leader)
    flush = store.flush

    def hold_loop() -> int:
        monkeypatch.setattr(store, "flush", flush)
        loop.call_soon_threadsafe(time.sleep, SLOW_S)
        return flush()

    told = await reasons(nodes, caplog, lambda: monkeypatch.setattr(store, "flush", hold_loop))
    assert told[:1] == [slow_log.STALL]  # what is tried again comes behind


def ended(told: SlowLog, took_s: float, **waits: float) -> None:
    """A call ends."""
    delivery = delivery_pb2.Delivery(request_id=b"\x01\x02")
    request = delivery_pb2.DeliverMessagesRequest(deliveries=[delivery])
    told.ended(ServedCall("S/M", request=request, level="quorum", took_s=took_s, waits=waits))


def test_the_reason_is_the_longest_wait() -> None:
    """Or what is not timed, under its own name."""

    def reason(took_s: float, **waits: float) -> str:
        return SlowLog(1, "handler").reason(ServedCall("S/M", took_s=took_s, waits=waits))

    assert reason(1.0, queue=0.6, flush=0.3) == "queue"
    assert reason(1.0, level=0.7, flush=0.2) == "level"
    assert reason(1.0, queue=0.2, flush=0.2) == "handler"
    assert reason(1.0) == "handler"


def test_a_flood_is_counted_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """So many lines a second; and nothing of what was fast enough, or of no threshold."""
    told = SlowLog(100, "handler")
    ended(told, 0.05)
    ended(SlowLog(0, "handler"), 50.0)
    assert not caplog.records
    while int(time.monotonic() + 0.5) != int(time.monotonic()):  # not over the end of a second
        time.sleep(0.05)
    for _ in range(LINES_PER_S_MAX + 3):
        ended(told, 1.0)
    assert len(caplog.records) == LINES_PER_S_MAX
    told._second = 0
    ended(told, 1.0)
    assert caplog.records[-1].untold == 3  # type: ignore[attr-defined]  # extra


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """What a process logs goes there, as it would."""
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    level = root.level
    path = tmp_path / "n1.log"
    with path.open("w", encoding="utf-8", buffering=1) as stream:
        logs.configure(
            LogLevel.WARNING,
            "json",
            levels={"node": LogLevel.DEBUG},
            stream=stream,
            context={"node": 1},
        )
        yield path
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("mailraft.node").setLevel(logging.NOTSET)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def run(*arguments: str) -> str:
    """What `mailraft slow-log` prints."""
    told = CliRunner().invoke(app, ["slow-log", *arguments])
    assert told.exit_code == 0, told.output
    return told.stdout


def test_the_command_reads_them(log_file: Path) -> None:
    """Out of everything else that is logged, cut lines too; the newest last."""
    logging.getLogger("mailraft.node.server").info("nothing slow")
    ended(SlowLog(100, "handler"), 0.2, flush=0.15)
    ended(SlowLog(100, "handler"), 2.0, queue=1.5)
    with log_file.open("a", encoding="utf-8") as file:
        file.write('{"event": "slow call", "method": "S/M"}\n{"event": "slow call", "met')
    lines = run(str(log_file)).splitlines()
    assert lines[0] == "slow_calls=2 flush=1 queue=1"
    assert lines[2].split()[1:] == ["n1", "S/M", "quorum", "200", "flush", "flush=150", "-", "0102"]
    (only,) = json.loads(run(str(log_file), "--reason", "queue", "-o", "json"))
    assert (only["took_ms"], only["waits_ms"], only["asked"]) == (
        2000.0,
        {"queue": 1500.0},
        "quorum",
    )
    assert json.loads(run(str(log_file), "--at-least-ms", "3000", "-o", "json")) == []


def test_a_missing_log_is_told(tmp_path: Path) -> None:
    """In one line."""
    told = CliRunner().invoke(app, ["slow-log", str(tmp_path / "none.log")])
    assert told.exit_code == 2
    assert told.stderr.startswith("error: cannot read ")


def test_a_line_says_which_call_it_belongs_to(log_file: Path) -> None:
    """Ids of the call that is served, wherever in the code it is logged, at its room's level."""

    async def serve() -> None:
        request = delivery_pb2.Delivery(request_id=b"\x0a")
        observed._current.set(ServedCall("S/M", request=request, trace_id="ab"))
        logging.getLogger("mailraft.node.shard").debug("of a call")
        logging.getLogger("mailraft.router.tries").info("too low")
        structlog.get_logger("mailraft.node.other").debug("structured", shard=3)

    asyncio.run(serve())
    logging.getLogger("mailraft.router.tries").warning("of none")
    told = [json.loads(line) for line in log_file.read_text("utf-8").splitlines()]
    assert [line["event"] for line in told] == ["of a call", "structured", "of none"]
    assert (told[0]["method"], told[0]["request_id"], told[0]["trace_id"]) == ("S/M", "0a", "ab")
    assert (told[1]["shard"], told[1]["request_id"]) == (3, "0a")
    assert "method" not in told[2]
