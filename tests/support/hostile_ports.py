"""Bytes thrown at a port, without and with TLS, by somebody who does not speak its protocol."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mailraft.cluster.addresses import split_address

# Who says nothing for so long has read what there was, and waits for more.
ANSWER_DEADLINE_S = 0.5
# The port of metrics looks at no more connections at a time.
CONNECTIONS_MAX = 32
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_EMPTY_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_FRAME_TYPES = range(10)  # RFC 9113 section 6: DATA to CONTINUATION


def tls(certs: Path, name: str) -> ssl.SSLContext:
    """As whom to connect: with a certificate that the cluster trusts."""
    context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    context.load_cert_chain(certs / f"{name}.pem", certs / f"{name}.key")
    context.set_alpn_protocols(["h2"])
    return context


def over_http2(payload: bytes) -> list[bytes]:
    """The payload as each kind of frame of a connection that begins well."""
    begun = HTTP2_PREFACE + _EMPTY_SETTINGS
    return [
        begun + len(payload).to_bytes(3) + bytes([kind, 0]) + stream.to_bytes(4) + payload
        for kind in _FRAME_TYPES
        for stream in (0, 1)
    ]


def half_sent(path: str, calls: int, message_bytes: int, sent_bytes: int) -> bytes:
    """A connection that begins so many gRPC calls, each with the head of a message and no more."""
    headers = {
        ":method": "POST",
        ":scheme": "https",
        ":path": path,
        ":authority": "mailraft",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(  # RFC 7541 section 6.2.2, without compression
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in headers.items()
    )
    head = b"\0" + message_bytes.to_bytes(4) + b"x" * sent_bytes
    said = HTTP2_PREFACE + _EMPTY_SETTINGS
    for number in range(calls):
        stream = (2 * number + 1).to_bytes(4)
        said += len(block).to_bytes(3) + b"\x01\x04" + stream + block
        said += len(head).to_bytes(3) + b"\x00\x00" + stream + head
    return said


def over_http1(payload: bytes) -> list[bytes]:
    """The payload as body, as header and as path of requests."""
    line = payload.replace(b"\r", b" ").replace(b"\n", b" ")
    size = b"Content-Length: %d" % len(payload)
    return [
        b"POST /metrics HTTP/1.1\r\n" + size + b"\r\n\r\n" + payload,
        b"GET /metrics HTTP/1.1\r\nCookie: " + line + b"\r\n" + size + b"\r\n\r\n" + payload,
        b"GET /" + line + b" HTTP/1.1\r\n\r\n",
    ]


async def throw(address: str, pieces: Sequence[bytes], tls: ssl.SSLContext | None = None) -> None:
    """Each of the pieces on a connection of its own. Raises OSError if one cannot be made."""
    for begin in range(0, len(pieces), CONNECTIONS_MAX):
        some = pieces[begin : begin + CONNECTIONS_MAX]
        await asyncio.gather(*(_one(address, piece, tls) for piece in some))


async def _one(address: str, piece: bytes, tls: ssl.SSLContext | None) -> None:
    host, port = split_address(address)
    name = "mailraft" if tls is not None else None
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=name)
    # That the other side answers, or hangs up, shows that it has looked at the bytes.
    with suppress(OSError, TimeoutError):
        writer.write(piece)
        await writer.drain()
        async with asyncio.timeout(ANSWER_DEADLINE_S):
            while await reader.read(4096):
                pass
    writer.transport.abort()
