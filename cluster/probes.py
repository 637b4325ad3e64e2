"""The second port of a process: /metrics (Prometheus), /livez and /readyz.

It tells numbers and nothing of anybody's mail. On loopback it speaks plain HTTP; elsewhere HTTPS,
to whoever shows a certificate of the cluster's authority.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mailraft.cluster.addresses import is_loopback, split_address
from mailraft.wire.credentials import AnyCredentials, Credentials, InsecureAddressError

REQUEST_MAX_BYTES = 8 * 1024
REQUEST_DEADLINE_S = 5.0
CONNECTIONS_MAX = 32
TEXT = "text/plain; charset=utf-8"


# What is looked at, and why it does not hold; empty: it does.
Checks = Mapping[str, str]


class Probes:
    """Answers GET on three paths; every connection carries one request.

    Ready is who passes all checks; `?verbose` lists them.
    """

    def __init__(self, checks: Callable[[], Checks]) -> None:
        self._checks = checks
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, address: str, credentials: AnyCredentials) -> None:
        """Listen. Raises OSError when the port is taken, InsecureAddressError where it would be in
        plain text for others.
        """
        host, port = split_address(address)
        session = None
        if not is_loopback(address):
            if not isinstance(credentials, Credentials):
                raise InsecureAddressError(f"{address} is not a loopback address: use TLS")
            session = _following(credentials)
        self._server = await asyncio.start_server(
            self._serve,
            host,
            port,
            limit=REQUEST_MAX_BYTES,
            ssl=session,
            ssl_handshake_timeout=REQUEST_DEADLINE_S if session else None,
        )

    @property
    def port(self) -> int:
        """Where it listens, also when the address said port 0."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS_MAX:
                async with asyncio.timeout(REQUEST_DEADLINE_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked went away, or does not speak HTTP
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path, _, query = rest.partition(b" ")[0].partition(b"?")
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"only GET\n")
        match path:
            case b"/metrics":
                return _response("200 OK", generate_latest(), CONTENT_TYPE_LATEST)
            case b"/livez":
                return _response("200 OK", b"alive\n")
            case b"/readyz":
                return _ready(self._checks(), verbose=query == b"verbose")
            case _:
                return _response("404 Not Found", b"/metrics, /livez, /readyz\n")


def _following(credentials: Credentials) -> ssl.SSLContext:
    """Mutual TLS by the files as they are at each connection; while they are being changed, as they
    were before.
    """
    stamp, current = credentials.stamp(), _context(credentials)

    def newest(session: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        nonlocal stamp, current
        found = credentials.stamp()
        if found and found != stamp:
            with suppress(OSError, ssl.SSLError):  # half of them are written
                current, stamp = _context(credentials), found
        session.context = current

    first = _context(credentials)
    first.sni_callback = newest
    return first


def _context(credentials: Credentials) -> ssl.SSLContext:
    authority, certificate, key = credentials.paths()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority)
    context.load_cert_chain(certificate, key)
    return context


def _ready(checks: Checks, *, verbose: bool) -> bytes:
    ready = not any(checks.values())
    lines = [f"{name}: {why or 'ok'}" for name, why in checks.items()] if verbose else []
    lines.append("ready" if ready else "not ready")
    status = "200 OK" if ready else "503 Service Unavailable"
    return _response(status, "".join(f"{line}\n" for line in lines).encode())


def _response(status: str, body: bytes, content_type: str = TEXT) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
