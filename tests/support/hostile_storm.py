"""Row 14: hostile calls of every kind at every port of a cluster, drawn from a seed, and what came
of them. Nothing here knows what is right for a call: only that it must be answered clearly.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor

import fuzzing
import hostile_calls
import hostile_ports
from hostile_calls import Filling
from mailraft.cluster import certs
from mailraft.internal.v1 import raft_pb2
from mailraft.v1 import delivery_pb2
from mailraft.wire import limits
from mailraft.wire.access import PRINCIPAL_KEY, Role
from mailraft.wire.credentials import Credentials, open_channel
from two_ports import methods

CALL_S_MAX = 2.0
WORKERS = 48
CONNECTIONS_AT_ONCE = 16
SERVED_BY_ROLE = {
    "client": Role.SERVICE,
    "limited": Role.SERVICE,
    "auditor": Role.AUDITOR,
    "router": Role.ROUTER,
    "node-9": Role.NODE,  # the authority signed it, and no map knows it
    "node-1": Role.NODE,
}
# What gRPC itself says of a call that it cut off, or refused before anybody of ours saw it.
_CUT_OFF = ("Internal error from Core", "Stream removed", "RST_STREAM", "Too many pings")
EXCHANGE = "/mailraft.internal.v1.PeerService/Exchange"
DELIVER = "/mailraft.v1.MessageService/DeliverMessages"


@dataclass(frozen=True, slots=True)
class Targets:
    """Ports: of calls by name, and of metrics. An authority that may sign, for certificates."""

    grpc: Mapping[str, str]
    http: Sequence[str]
    certs: Path
    cluster_id: str
    accounts: Sequence[str]


@dataclass(slots=True)
class Tally:
    """What was sent by kind, and how it was answered."""

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    unclear: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.sent.most_common())
        codes = ", ".join(f"{code} {count:,}" for code, count in self.answered.most_common())
        return f"{self.sent.total():,} calls and connections: {kinds}\nanswers: {codes}"


class Storm:
    """A block around it makes its certificates and closes its channels.

    async with Storm(targets, seed=1) as storm:
        tally = await storm.run(100_000)
    """

    def __init__(self, targets: Targets, *, seed: int) -> None:
        self._targets, self._seed = targets, seed
        self.tally = Tally()
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}
        self._connecting = asyncio.Semaphore(CONNECTIONS_AT_ONCE)
        self._mail = fuzzing.malformed_mail()
        self._paths = list(methods())
        self._seeds: dict[str, list[bytes]] = {}
        self._kinds: list[tuple[int, Callable[[random.Random], Awaitable[None]]]] = [
            (640, self._nearly_right),
            (100, self._another_type),
            (90, self._nested),
            (60, self._metadata),
            (60, self._mail_of_the_corpus),
            (30, self._peer),
            (4, self._oversized),
            (4, self._raw_bytes),
            (4, self._half_spoken_http2),
            (4, self._at_the_metrics_port),
            (2, self._without_certificate),
        ]

    async def __aenter__(self) -> Storm:
        folder = self._targets.certs
        for name, role in SERVED_BY_ROLE.items():
            if not (folder / f"{name}.pem").exists():
                limited = ["nobody-*"] if name == "limited" else []
                certs.issue(folder, name, role, accounts=limited)
        for path, method in self._paths:
            known: dict[str, str | bytes] = {
                "account_id": self._targets.accounts[0],
                "request_id": os.urandom(16),
            }
            text = self._targets.accounts[-1]
            filled = list(hostile_calls.requests(method.input_type, Filling(b"x", text, known)))
            self._seeds[path] = [b"", *filled]
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close(None) for channel in self._channels.values()))

    async def run(self, calls: int) -> Tally:
        """So many, as fast as they are answered."""
        left = iter(range(calls))

        async def worker(number: int) -> None:
            rng = random.Random(f"{self._seed}-{number}")
            weights = [weight for weight, _ in self._kinds]
            kinds = [kind for _, kind in self._kinds]
            for _ in left:
                (kind,) = rng.choices(kinds, weights)
                self.tally.sent[kind.__name__.strip("_").replace("_", " ")] += 1
                await kind(rng)

        async with asyncio.TaskGroup() as group:
            for number in range(WORKERS):
                group.create_task(worker(number))
        return self.tally

    # ---- calls

    async def _nearly_right(self, rng: random.Random) -> None:
        """Requests with a few bytes changed, of every call, by every role."""
        path, method = rng.choice(self._paths)
        many = rng.randrange(1, 4) if method.client_streaming else 1
        changed = [fuzzing.changed(rng, self._seeds[path]) for _ in range(many)]
        await self._call(rng, path, changed)

    async def _another_type(self, rng: random.Random) -> None:
        path, _ = rng.choice(self._paths)
        other, _ = rng.choice(self._paths)
        await self._call(rng, path, [rng.choice(self._seeds[other])])

    async def _nested(self, rng: random.Random) -> None:
        """Messages within messages, far deeper than any parser goes."""
        path, method = rng.choice(self._paths)
        inner = b""
        tag = bytes((rng.choice(_message_fields(method)) << 3 | 2,))
        for _ in range(rng.choice((90, 110, 1_000))):
            inner = tag + _varint(len(inner)) + inner
        await self._call(rng, path, [inner])

    async def _metadata(self, rng: random.Random) -> None:
        """Large, strange, and such as only a router may send."""
        path, _ = rng.choice(self._paths)
        text = "".join(chr(rng.randrange(0x21, 0x7F)) for _ in range(rng.choice((1, 100, 7_000))))
        pairs: list[tuple[str, str | bytes]] = [
            (PRINCIPAL_KEY, "operator/admin"),
            (PRINCIPAL_KEY, text),
            ("x-mailraft-account", text),
            ("x-mailraft-epoch", text),
            ("traceparent", text),
            ("hostile-bin", os.urandom(rng.choice((0, 10, 20_000)))),
        ]
        pair = rng.choice(pairs)
        await self._call(rng, path, [rng.choice(self._seeds[path])], [pair] * rng.choice((1, 2, 3)))

    async def _mail_of_the_corpus(self, rng: random.Random) -> None:
        """Well-formed calls whose mail is not."""
        raw = rng.choice(self._mail)
        if rng.random() < 0.5:
            raw = fuzzing.changed(rng, [raw])[: 256 * 1024]
        accounts = rng.sample(list(self._targets.accounts), k=min(2, len(self._targets.accounts)))
        request = delivery_pb2.DeliverMessagesRequest(
            deliveries=[
                delivery_pb2.Delivery(
                    request_id=rng.randbytes(16),
                    content=delivery_pb2.Content(raw=raw or b"\n"),
                    recipients=[delivery_pb2.Recipient(account_id=each) for each in accounts],
                )
            ]
        )
        await self._call(rng, DELIVER, [request.SerializeToString()], name="client")

    async def _peer(self, rng: random.Random) -> None:
        """Raft of another cluster, another node, another replica, or none at all."""
        ours, name = rng.random() < 0.5, rng.choice(("node-9", "node-1", "client"))
        hello = raft_pb2.Hello(
            cluster_id=self._targets.cluster_id if ours else "another",
            from_node=rng.choice((2, 3, 9)),  # never whose certificate it is
            to_node=rng.randrange(5),
            session=rng.getrandbits(63),
        )
        envelope = raft_pb2.Envelope(
            group=rng.randrange(12),
            from_replica=rng.getrandbits(40),
            to_replica=rng.getrandbits(40),
            term=rng.getrandbits(50),
            append_entries=raft_pb2.AppendEntries(prev_log_index=rng.getrandbits(40)),
        )
        frames = [
            raft_pb2.ExchangeRequest(hello=hello).SerializeToString(),
            raft_pb2.ExchangeRequest(envelopes=[envelope]).SerializeToString(),
        ]
        if rng.random() < 0.5:
            frames = [fuzzing.changed(rng, frames) for _ in range(3)]
        await self._call(rng, EXCHANGE, frames, name=name)

    async def _oversized(self, rng: random.Random) -> None:
        path, _ = rng.choice(self._paths)
        size_bytes = limits.RPC_MAX_BYTES * rng.choice((1, 2, 5))
        await self._call(rng, path, [b"\n" + _varint(size_bytes) + bytes(size_bytes)])

    async def _call(
        self,
        rng: random.Random,
        path: str,
        messages: Sequence[bytes],
        metadata: Sequence[tuple[str, str | bytes]] = (),
        name: str = "",
    ) -> None:
        port = rng.choice(list(self._targets.grpc))
        channel = self._channel(port, name or rng.choice(list(SERVED_BY_ROLE)))
        code, details = await _answer(channel, path, messages, metadata)
        self.tally.answered[code.name] += 1
        fell = code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
        if fell and not any(each in details for each in _CUT_OFF):
            self.tally.unclear.append(f"{port} {path}: {code.name} {details[:200]}")

    def _channel(self, port: str, name: str) -> grpc.aio.Channel:
        if (port, name) not in self._channels:
            shown = Credentials(self._targets.certs, name)
            own = (("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20))
            address = self._targets.grpc[port]
            self._channels[port, name] = open_channel(address, shown, own)
        return self._channels[port, name]

    # ---- connections

    async def _raw_bytes(self, rng: random.Random) -> None:
        """What is no TLS, or begins like it."""
        start = rng.choice(
            (b"", b"\x16\x03\x01", b"\x16\x03\x03\x02\x00\x01", b"GET / HTTP/1.1\r\n")
        )
        await self._throw(rng, start + rng.randbytes(rng.choice((0, 1, 50, 5_000))), None)

    async def _half_spoken_http2(self, rng: random.Random) -> None:
        """Behind a good certificate: frames of any kind, and cut off anywhere."""
        name = rng.choice(("client", "node-9"))
        session = hostile_ports.tls(self._targets.certs, name)
        said = rng.choice(hostile_ports.over_http2(rng.randbytes(rng.choice((0, 8, 300)))))
        if rng.random() < 0.5:
            said = said[: rng.randrange(len(said))]
        await self._throw(rng, said, session)

    async def _at_the_metrics_port(self, rng: random.Random) -> None:
        if not self._targets.http:
            return
        said = rng.choice(hostile_ports.over_http1(rng.randbytes(rng.choice((0, 8, 20_000)))))
        await self._throw(rng, said, None, rng.choice(list(self._targets.http)))

    async def _without_certificate(self, rng: random.Random) -> None:
        """No certificate at all, and calls in plain text."""
        address = rng.choice(list(self._targets.grpc.values()))
        if rng.random() < 0.5:
            authority = grpc.ssl_channel_credentials((self._targets.certs / "ca.pem").read_bytes())
            override = (("grpc.ssl_target_name_override", "mailraft"),)
            channel = grpc.aio.secure_channel(address, authority, override)
        else:
            channel = grpc.aio.insecure_channel(address)
        async with self._connecting, channel:
            code, details = await _answer(channel, "/grpc.health.v1.Health/Check", [b""], ())
        self.tally.answered[f"{code.name} (no certificate)"] += 1
        if code is grpc.StatusCode.OK:
            self.tally.unclear.append(f"{address} lets everybody in: {details}")

    async def _throw(
        self, rng: random.Random, said: bytes, session: ssl.SSLContext | None, address: str = ""
    ) -> None:
        address = address or rng.choice(list(self._targets.grpc.values()))
        async with self._connecting:
            try:
                await hostile_ports.throw(address, [said], session)
            except (OSError, ssl.SSLError) as error:
                self.tally.answered[f"connection: {type(error).__name__}"] += 1
            else:
                self.tally.answered["connection"] += 1


async def _answer(
    channel: grpc.aio.Channel,
    path: str,
    messages: Sequence[bytes],
    metadata: Sequence[tuple[str, str | bytes]],
) -> tuple[grpc.StatusCode, str]:
    untyped: Any = channel  # its stubs know neither bytes as they are nor EOF
    call = untyped.stream_stream(path)(iter(messages), timeout=CALL_S_MAX, metadata=tuple(metadata))
    try:
        if await call.read():
            return grpc.StatusCode.OK, ""
        return await call.code(), await call.details()
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    except (asyncio.InvalidStateError, grpc.aio.UsageError):
        return grpc.StatusCode.CANCELLED, "ended while it was sent"
    finally:
        with suppress(asyncio.InvalidStateError):
            call.cancel()


def _message_fields(method: MethodDescriptor) -> list[int]:
    """Numbers of the fields that hold messages, as far as they fit a tag of one byte."""
    numbers = [each.number for each in method.input_type.fields if each.message_type is not None]
    return [each for each in numbers if each < 16] or [1]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
