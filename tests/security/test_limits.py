"""Limits against abuse, one test each, on both ports: who goes beyond is told so, or let go; who
does not is served meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import pytest
import pytest_asyncio

from hostile_ports import HTTP2_PREFACE, tls
from mailraft.client import AsyncClient
from mailraft.client.ids import request_ids
from mailraft.cluster import certs
from mailraft.cluster.addresses import split_address
from mailraft.v1 import account_pb2, batch_pb2, blob_pb2, change_pb2, delivery_pb2
from mailraft.wire import credentials, errors, guard, limits
from mailraft.wire.access import Role
from mailraft.wire.callers import CallerLimits
from mailraft.wire.credentials import Credentials, open_channel
from two_ports import Ports, serving

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

BOTH_PORTS = pytest.mark.parametrize("port", ["node", "router"])
LOW = CallerLimits(
    calls_per_s=40, recipients_per_s=200, bytes_per_s=8 * 1024 * 1024, calls_max=8, streams_max=4
)
MAP, GET = "/mailraft.v1.ClusterService/GetClusterMap", "/mailraft.v1.AccountService/GetAccount"
WATCH, UPLOAD = "/mailraft.v1.MessageService/Watch", "/mailraft.v1.BlobService/UploadBlob"
EXECUTE = "/mailraft.v1.BatchService/Execute"
DELIVER = "/mailraft.v1.MessageService/DeliverMessages"
ACCOUNT = "ada"
_numbers = itertools.count()
DEADLINE_S = 20.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ports(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ports]:
    """A node and a router with low limits."""
    async with serving(tmp_path_factory.mktemp("limits"), LOW, connections_max=32) as both:
        async with AsyncClient(both.addresses["router"], certs=both.certs, name="admin") as admin:
            await admin.create_account(ACCOUNT)
        yield both


def opened(ports: Ports, port: str, name: str = "") -> Any:
    """A channel, of a caller of its own; its stubs do not know bytes as they are."""
    if not name:
        name = f"caller-{next(_numbers)}"
        certs.issue(ports.certs, name, Role.SERVICE)
    own = (("grpc.use_local_subchannel_pool", 1),)
    return open_channel(ports.addresses[port], Credentials(ports.certs, name), own)


async def told(call: Any) -> errors.MailraftError:
    """How it is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return errors.from_rpc_error(refused.value)


async def others_are_served(ports: Ports, port: str) -> None:
    """A caller with another name."""
    async with opened(ports, port, "admin") as channel:
        assert await channel.unary_unary(MAP)(b"", timeout=DEADLINE_S)


async def until_refused(call: Any, times: int) -> tuple[int, errors.MailraftError | None]:
    """How often it passed, and why it then did not."""
    for passed in range(times):
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            return passed, errors.from_rpc_error(error)
    return times, None


# ---- rates ---------------------------------------------------------------------------------------


@BOTH_PORTS
async def test_calls_in_a_second(ports: Ports, port: str) -> None:
    """A burst passes, then RATE_LIMITED with a delay, after which it is served again."""
    async with opened(ports, port) as channel:
        passed, refused = await until_refused(
            lambda: channel.unary_unary(MAP)(b"", timeout=DEADLINE_S), 5_000
        )
        assert isinstance(refused, errors.RateLimitedError)
        assert passed >= LOW.calls_per_s
        await others_are_served(ports, port)
        assert refused.retry_after_ms
        await asyncio.sleep(refused.retry_after_ms / 1000)
        assert await channel.unary_unary(MAP)(b"", timeout=DEADLINE_S)


@BOTH_PORTS
async def test_items_of_batches_are_calls(ports: Ports, port: str) -> None:
    """A batch is no way around."""
    item = batch_pb2.BatchItem(get_account=account_pb2.GetAccountRequest(account_id=ACCOUNT))
    batch = batch_pb2.ExecuteRequest(items=[item] * 64).SerializeToString()
    async with opened(ports, port) as channel:
        passed, refused = await until_refused(
            lambda: channel.unary_unary(EXECUTE)(batch, timeout=DEADLINE_S), 50
        )
        assert isinstance(refused, errors.RateLimitedError)
        assert 1 <= passed <= 8
        await others_are_served(ports, port)


@BOTH_PORTS
async def test_recipients_in_a_second(ports: Ports, port: str) -> None:
    """However few the calls are."""
    recipients = [delivery_pb2.Recipient(account_id=f"nobody-{each}") for each in range(300)]
    request = delivery_pb2.DeliverMessagesRequest(
        deliveries=[
            delivery_pb2.Delivery(
                request_id=request_ids.next(),
                content=delivery_pb2.Content(raw=b"Subject: x\r\n\r\n"),
                recipients=recipients,
            )
        ]
    ).SerializeToString()
    async with opened(ports, port) as channel:
        passed, refused = await until_refused(
            lambda: channel.unary_unary(DELIVER)(request, timeout=DEADLINE_S), 20
        )
        assert isinstance(refused, errors.RateLimitedError)
        assert "recipients" in refused.message
        assert 1 <= passed <= 8
        await others_are_served(ports, port)


@BOTH_PORTS
async def test_bytes_in_a_second(ports: Ports, port: str) -> None:
    """Of requests that are no good, too: they are counted before they are parsed."""
    request = b"\xff" * (3 * 1024 * 1024)
    async with opened(ports, port) as channel:
        found = [
            await told(channel.unary_unary(GET)(request, timeout=DEADLINE_S)) for _ in range(12)
        ]
        assert isinstance(found[0], errors.BadFieldError)
        assert isinstance(found[-1], errors.RateLimitedError)
        await others_are_served(ports, port)


# ---- what is open at once ------------------------------------------------------------------------


@BOTH_PORTS
async def test_calls_at_once(ports: Ports, port: str) -> None:
    """Those count too whose request has not come yet."""
    async with opened(ports, port) as channel:
        silent = [channel.stream_unary(GET)(timeout=DEADLINE_S) for _ in range(LOW.calls_max)]
        await asyncio.gather(*(each.wait_for_connection() for each in silent))
        await asyncio.sleep(0.5)
        refused = await told(channel.unary_unary(MAP)(b"", timeout=DEADLINE_S))
        assert isinstance(refused, errors.OverloadedError)
        assert refused.retry_after_ms
        await others_are_served(ports, port)
        for each in silent:
            each.cancel()
        await asyncio.sleep(0.5)
        assert await channel.unary_unary(MAP)(b"", timeout=DEADLINE_S)


@BOTH_PORTS
async def test_streams_at_once(ports: Ports, port: str) -> None:
    """Watches that stay open; calls have a bound of their own."""
    request = change_pb2.WatchRequest(account_id=ACCOUNT, subscribe=change_pb2.WatchSubscribe())
    async with opened(ports, port) as channel:
        streams = [channel.stream_stream(WATCH)(timeout=DEADLINE_S) for _ in range(LOW.streams_max)]
        for each in streams:
            await each.write(request.SerializeToString())
            assert await each.read()
        one_more = channel.stream_stream(WATCH)(iter([request.SerializeToString()]), timeout=5.0)
        refused = await told(one_more.read())
        assert isinstance(refused, errors.OverloadedError)
        assert await channel.unary_unary(MAP)(b"", timeout=DEADLINE_S)
        await others_are_served(ports, port)
        for each in streams:
            each.cancel()


# ---- sizes ---------------------------------------------------------------------------------------


@BOTH_PORTS
async def test_sizes_of_messages_and_metadata(ports: Ports, port: str) -> None:
    """Those that are too large are refused, and the connection goes on."""
    large = b"x" * (limits.RPC_MAX_BYTES + credentials.MESSAGE_ROOM_BYTES + 1)
    own = (("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20))
    shown = Credentials(ports.certs, "client")
    async with open_channel(ports.addresses[port], shown, own) as channel:
        untyped: Any = channel
        calls = {
            "message": untyped.unary_unary(GET)(large, timeout=DEADLINE_S),
            "metadata": untyped.unary_unary(MAP)(
                b"", metadata=(("x-large", "x" * 20_000),), timeout=DEADLINE_S
            ),
        }
        for what, call in calls.items():
            refused = await told(call)
            assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED, (what, refused)
        assert await untyped.unary_unary(MAP)(b"", timeout=DEADLINE_S)


# ---- slow senders --------------------------------------------------------------------------------


@BOTH_PORTS
async def test_a_request_that_does_not_come(
    ports: Ports, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its call is ended, whatever deadline it set itself."""
    monkeypatch.setattr(guard, "RECEIVE_S", 0.5)
    async with opened(ports, port) as channel:
        began_s = time.monotonic()
        refused = await told(channel.stream_unary(GET)(timeout=DEADLINE_S))
        assert isinstance(refused, errors.DeadlineExceededError)
        assert time.monotonic() - began_s < DEADLINE_S / 2


@BOTH_PORTS
async def test_an_upload_that_trickles(
    ports: Ports, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then keeps no upload open."""
    monkeypatch.setattr(guard, "UPLOAD_SLOW_S", 0.5)
    header = blob_pb2.UploadHeader(
        account_id=ACCOUNT,
        request_id=request_ids.next(),
        size_bytes=1_000_000,
        sha256=b"x" * 32,
    )
    byte = blob_pb2.BlobChunk(data=b"x", crc32c=google_crc32c.value(b"x"))
    chunk = blob_pb2.UploadBlobRequest(chunk=byte)
    async with opened(ports, port) as channel:
        call = channel.stream_unary(UPLOAD)(timeout=DEADLINE_S)
        await call.write(blob_pb2.UploadBlobRequest(header=header).SerializeToString())
        sent = 0
        while not call.done() and sent < 100:
            try:
                await call.write(chunk.SerializeToString())
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                break
            sent += 1
            await asyncio.sleep(0.1)
        refused = await told(call)
        assert isinstance(refused, errors.DeadlineExceededError), refused
        assert 3 <= sent < 60
    async with AsyncClient(ports.addresses[port], certs=ports.certs, name="admin") as admin:
        await admin.append(ACCOUNT, [b"Subject: large\r\n\r\n".ljust(1_500_000, b"x")])


async def test_a_handshake_that_does_not_come(ports: Ports) -> None:
    """Neither TLS, nor behind it the first words of HTTP/2."""

    async def silent(address: str, say: bytes, session: ssl.SSLContext | None) -> float:
        host, number = split_address(address)
        name = "mailraft" if session is not None else None
        reader, writer = await asyncio.open_connection(
            host, number, ssl=session, server_hostname=name
        )
        began_s = time.monotonic()
        writer.write(say)
        async with asyncio.timeout(60.0):
            while await reader.read(4096):
                pass
        writer.transport.abort()
        return time.monotonic() - began_s

    session = tls(ports.certs, "client")
    waits = await asyncio.gather(
        *(
            silent(address, say, kind)
            for address in ports.addresses.values()
            for say, kind in ((b"", None), (b"\x16\x03\x01", None), (b"PRI", session))
        ),
    )
    print(f"let go after {max(waits):.1f} s at most")
    assert max(waits) < 3 * credentials.HANDSHAKE_MAX_MS / 1000


# ---- connections ---------------------------------------------------------------------------------


@BOTH_PORTS
async def test_connections(ports: Ports, port: str) -> None:
    """Beyond the limit they are closed; those that are open go on, and what ends makes room."""
    async with opened(ports, port) as channel:
        assert await channel.unary_unary(MAP)(b"", timeout=DEADLINE_S)
        host, number = split_address(ports.addresses[port])
        held = [await asyncio.open_connection(host, number) for _ in range(40)]
        try:
            await asyncio.sleep(0.5)
            refused = None
            for _ in range(10):  # until all of those before it were looked at
                async with opened(ports, port) as late:
                    _, refused = await until_refused(
                        lambda late=late: late.unary_unary(MAP)(b"", timeout=1.0), 1
                    )
                if refused is not None:
                    break
            assert refused is not None
            assert refused.code.name in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
            assert await channel.unary_unary(MAP)(b"", timeout=DEADLINE_S)
        finally:
            for _, writer in held:
                writer.transport.abort()
            await asyncio.sleep(0.5)
        await others_are_served(ports, port)


def frames(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Kinds and payloads of HTTP/2 frames (RFC 9113 section 4.1)."""
    while len(raw) >= 9:
        size_bytes = int.from_bytes(raw[:3])
        yield raw[3], raw[9 : 9 + size_bytes]
        raw = raw[9 + size_bytes :]


async def spoken(
    address: str, folder: Path, say: bytes, within_s: float
) -> list[tuple[int, bytes]]:
    """Frames that come back, until nothing does any more."""
    host, number = split_address(address)
    reader, writer = await asyncio.open_connection(
        host, number, ssl=tls(folder, "client"), server_hostname="mailraft"
    )
    writer.write(HTTP2_PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + say)
    heard = b""
    try:
        async with asyncio.timeout(within_s):
            while more := await reader.read(65536):
                heard += more
    except (TimeoutError, OSError):
        pass
    writer.transport.abort()
    return list(frames(heard))


@BOTH_PORTS
async def test_what_a_connection_may_do_is_told_at_its_start(ports: Ports, port: str) -> None:
    """SETTINGS: streams at once (3), bytes of headers (6)."""
    heard = await spoken(ports.addresses[port], ports.certs, b"", 1.0)
    settings = next(payload for kind, payload in heard if kind == 4)
    told_there = {
        int.from_bytes(settings[at : at + 2]): int.from_bytes(settings[at + 2 : at + 6])
        for at in range(0, len(settings), 6)
    }
    assert told_there[3] == credentials.CONCURRENT_STREAMS_MAX
    assert told_there[6] == credentials.METADATA_MAX_BYTES


@BOTH_PORTS
async def test_pings(ports: Ports, port: str) -> None:
    """Who pings on and on is sent away (GOAWAY, ENHANCE_YOUR_CALM)."""
    ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"abcdefgh"
    heard = await spoken(ports.addresses[port], ports.certs, ping * 200, 5.0)
    assert [payload[4:8] for kind, payload in heard if kind == 7] == [b"\x00\x00\x00\x0b"]
