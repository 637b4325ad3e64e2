import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hostile_ports import tls
from mailraft.cluster import certs, probes
from mailraft.cluster.probes import REQUEST_MAX_BYTES, Probes
from mailraft.wire.credentials import Credentials, Insecure, InsecureAddressError


class _Process:
    """Ready or not, with its second port."""

    def __init__(self) -> None:
        self.checks = {"serving": "it starts", "disk": ""}
        self.probes = Probes(lambda: self.checks)

    async def ask(self, request: bytes) -> tuple[str, bytes]:
        """Status line and body of one request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.probes.port)
        try:
            writer.write(request)
            writer.write_eof()
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        return head.partition(b"\r\n")[0].decode(), body

    async def get(self, path: str) -> tuple[str, bytes]:
        """As a scraper asks."""
        return await self.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


@pytest.fixture
async def process() -> AsyncIterator[_Process]:
    """A process whose second port is open."""
    process = _Process()
    await process.probes.start("127.0.0.1:0", Insecure())
    yield process
    await process.probes.stop()


async def test_ready_follows_the_process(process: _Process) -> None:
    """/readyz says whether calls are served, and with verbose why not; /livez only that somebody is
    there.
    """
    unready = "HTTP/1.1 503 Service Unavailable"
    assert await process.get("/livez") == ("HTTP/1.1 200 OK", b"alive\n")
    assert await process.get("/readyz") == (unready, b"not ready\n")
    told = b"serving: it starts\ndisk: ok\nnot ready\n"
    assert await process.get("/readyz?verbose") == (unready, told)
    process.checks["serving"] = ""
    assert await process.get("/readyz") == ("HTTP/1.1 200 OK", b"ready\n")
    told = b"serving: ok\ndisk: ok\nready\n"
    assert await process.get("/readyz?verbose") == ("HTTP/1.1 200 OK", told)


async def test_metrics(process: _Process) -> None:
    """/metrics is what Prometheus reads."""
    status, body = await process.get("/metrics")
    assert status == "HTTP/1.1 200 OK"
    assert b"# TYPE process_cpu_seconds_total counter" in body


async def test_anything_else(process: _Process) -> None:
    """Other paths and methods are refused, and what is no HTTP gets no answer."""
    assert (await process.get("/"))[0] == "HTTP/1.1 404 Not Found"
    assert (await process.ask(b"POST /metrics HTTP/1.1\r\n\r\n"))[0].startswith("HTTP/1.1 405")
    assert await process.ask(b"hello") == ("", b"")
    assert await process.ask(b"GET /livez" + b"x" * 2 * REQUEST_MAX_BYTES) == ("", b"")
    assert (await process.get("/livez"))[0] == "HTTP/1.1 200 OK"


async def test_beyond_loopback_only_the_cluster_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS, by certificates as they are at each connection; never in plain text."""
    monkeypatch.setattr(probes, "is_loopback", lambda _: False)
    with pytest.raises(InsecureAddressError):
        await Probes(dict).start("127.0.0.1:0", Insecure())
    for folder in (tmp_path / "ours", tmp_path / "foreign"):
        certs.ensure(folder, certs.names_of([1]))
    port = Probes(dict)
    await port.start("127.0.0.1:0", Credentials(tmp_path / "ours", "node-1"))

    async def get(session: ssl.SSLContext | None) -> bytes:
        name = None if session is None else "mailraft"
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port.port, ssl=session, server_hostname=name
        )
        try:
            writer.write(b"GET /livez HTTP/1.1\r\n\r\n")
            return await reader.read()
        finally:
            writer.transport.abort()

    ours = tmp_path / "ours"
    assert (await get(tls(ours, "auditor"))).endswith(b"alive\n")
    nobody = ssl.create_default_context(cafile=str(ours / "ca.pem"))
    for stranger in (None, nobody):
        with pytest.raises((OSError, AssertionError)):  # a reset, or an end without a word
            assert await get(stranger)
    foreign = tls(tmp_path / "foreign", "auditor")
    foreign.load_verify_locations(ours / "ca.pem")
    with pytest.raises((OSError, AssertionError)):
        assert await get(foreign)
    for step in certs.Step:
        certs.roll(ours, step)
    assert (await get(tls(ours, "auditor"))).endswith(b"alive\n")
    await port.stop()
