"""etcd: three members; a mail is a key."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from bench.compare import mails, work
from bench.compare.daemon import Daemon, free_ports, ready
from bench.compare.interface import BATCH, MAILBOXES, PAGE, Address, Work

from mailraft.router.coalesce import Coalescer

MEMBERS = 3
REQUEST_BYTES_MAX = 4 * 1024 * 1024
QUOTA_BYTES = 8 * 1024**3
DEADLINE_S = 20.0
TRY_S, PAUSE_S = 0.1, 0.005
LARGE = b"large/"
# Txns in flight: more did not help.
TXNS = 10

pb: Any = grpc.protos("bench/compare/etcd.proto")


def keys_of(mailbox: int) -> bytes:
    return b"mail/%03d/" % mailbox


class Calls:
    """The calls of one member."""

    def __init__(self, target: str) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.insecure_channel(target, options)
        self.put = self._call("KV/Put", pb.PutRequest, pb.PutResponse)
        self.range = self._call("KV/Range", pb.RangeRequest, pb.RangeResponse)
        self.txn = self._call("KV/Txn", pb.TxnRequest, pb.TxnResponse)
        self.status = self._call("Maintenance/Status", pb.StatusRequest, pb.StatusResponse)

    def _call(self, name: str, request: Any, response: Any) -> Any:
        return self.channel.unary_unary(
            f"/etcdserverpb.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )


class EtcdServer:
    """Three members on loopback, with Debian's etcd."""

    name, title = "etcd", "etcd, 3 members"
    version_command: Sequence[str] = ("etcd", "--version")

    def __init__(self) -> None:
        self.members: list[Daemon] = []
        self.targets: list[str] = []

    def missing(self) -> str:
        return "" if shutil.which("etcd") else "etcd-server"

    async def start(self, folder: Path) -> None:
        ports = free_ports(2 * MEMBERS)
        clients, peers = ports[:MEMBERS], ports[MEMBERS:]
        self.targets = [f"127.0.0.1:{port}" for port in clients]
        cluster = ",".join(f"m{i}=http://127.0.0.1:{port}" for i, port in enumerate(peers))
        for number, (client, peer) in enumerate(zip(clients, peers, strict=True)):
            url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
            options = {
                "name": f"m{number}",
                "data-dir": folder / f"m{number}",
                "listen-client-urls": url,
                "advertise-client-urls": url,
                "listen-peer-urls": peer_url,
                "initial-advertise-peer-urls": peer_url,
                "initial-cluster": cluster,
                "max-request-bytes": REQUEST_BYTES_MAX,
                "quota-backend-bytes": QUOTA_BYTES,
                "logger": "zap",
                "log-outputs": "stderr",
            }
            command = ["etcd", *(f"--{name}={value}" for name, value in options.items())]
            self.members.append(Daemon(command, folder / f"m{number}.log"))
        for member in self.members:
            member.start()
        await ready(self.members, self._serves)

    async def _serves(self) -> bool:
        return await leader_of(self.targets) is not None

    async def stop(self) -> None:
        await asyncio.gather(*(member.stop() for member in self.members))

    async def settle(self) -> None:
        """It puts nothing off for longer than 100 ms."""

    async def fail_over(self) -> float:
        """Seconds from SIGKILL of the leader until a write is acknowledged; all run again then.

        The write is tried at the members that are left, again as soon as one of them refuses it or
        says nothing for 100 ms, which is the best that a client can do.
        """
        leader = await leader_of(self.targets)
        assert leader is not None
        left = [Calls(target) for i, target in enumerate(self.targets) if i != leader]
        try:
            for calls in left:
                await calls.put(pb.PutRequest(key=b"before", value=b"x"), timeout=DEADLINE_S)
            began_s = time.monotonic()
            self.members[leader].kill_soon()
            for calls in itertools.cycle(left):
                try:
                    await calls.put(pb.PutRequest(key=b"after", value=b"x"), timeout=TRY_S)
                    break
                except grpc.aio.AioRpcError:
                    assert time.monotonic() < began_s + DEADLINE_S, "no new leader"
                    await asyncio.sleep(PAUSE_S)
            took_s = time.monotonic() - began_s
        finally:
            for calls in left:
                await calls.channel.close(None)
        self.members[leader].kill()
        self.members[leader].start()
        await ready(self.members, self._all_answer)
        return took_s

    async def _all_answer(self) -> bool:
        for target in self.targets:
            calls = Calls(target)
            try:
                status = await calls.status(pb.StatusRequest(), timeout=1.0)
            except grpc.aio.AioRpcError:
                return False
            finally:
                await calls.channel.close(None)
            if not status.leader:
                return False
        return True

    @property
    def address(self) -> Address:
        return {"targets": self.targets}

    def pids(self) -> Sequence[int]:
        return [member.pid for member in self.members]


async def leader_of(targets: Sequence[str]) -> int | None:
    """Which of them leads; None: they know of none."""
    for number, target in enumerate(targets):
        calls = Calls(target)
        try:
            status = await calls.status(pb.StatusRequest(), timeout=1.0)
        except grpc.aio.AioRpcError:
            continue
        finally:
            await calls.channel.close(None)
        if status.leader and status.leader == status.header.member_id:
            return number
    return None


class EtcdClient:
    """Writes and linearizable reads go to the leader, serializable reads to all in turns."""

    errors: tuple[type[Exception], ...] = (grpc.aio.AioRpcError,)

    def __init__(self) -> None:
        self.works: Mapping[str, Work] = {
            "deliver128": Work(128, self._deliver),
            "deliver128c": Work(128, self._deliver_together),
            "bulk": Work(TXNS, self._bulk),
            "single": Work(1, self._deliver),
            "get": Work(32, self._get),
            "page": Work(8, self._page),
        }
        self._mails = mails.Mails(mails.load(), MAILBOXES)
        self._sent: list[tuple[bytes, int]] = []
        self._calls: list[Calls] = []
        self._leader: Calls | None = None
        self._large: list[bytes] = []
        self._turn = 0
        self._together: Coalescer[Any, None] = Coalescer(self._send, items_max=BATCH)

    async def open(self, address: Address, large_mailbox: int) -> None:
        self._calls = [Calls(target) for target in address["targets"]]
        leader = await leader_of(address["targets"])
        assert leader is not None
        self._leader = self._calls[leader]
        await work.run_units(self.works["bulk"], self._mails.count, self.errors)
        for first in range(0, large_mailbox, BATCH):
            puts = []
            for number in range(first, first + BATCH):
                _, _, raw = self._mails.next()
                self._large.append(LARGE + b"%09d" % number)
                puts.append(pb.PutRequest(key=self._large[-1], value=raw))
            await self._send(puts, 0)

    async def close(self) -> None:
        for calls in self._calls:
            await calls.channel.close(None)

    @property
    def leader(self) -> Calls:
        assert self._leader is not None
        return self._leader

    def _put(self) -> Any:
        number, mailbox, raw = self._mails.next()
        key = keys_of(mailbox) + b"%09d" % number
        self._sent.append((key, len(raw)))
        return pb.PutRequest(key=key, value=raw)

    async def _deliver(self, _: int) -> int:
        await self.leader.put(self._put(), timeout=DEADLINE_S)
        return 1

    async def _deliver_together(self, _: int) -> int:
        put = self._put()
        until_s = asyncio.get_running_loop().time() + DEADLINE_S
        await self._together.submit(put, len(put.value), until_s)
        return 1

    async def _bulk(self, _: int) -> int:
        await self._send([self._put() for _ in range(BATCH)], 0)
        return BATCH

    async def _send(self, puts: Sequence[Any], _: float) -> Sequence[None]:
        request = pb.TxnRequest(success=[pb.RequestOp(request_put=put) for put in puts])
        reply = await self.leader.txn(request, timeout=DEADLINE_S)
        assert reply.succeeded
        return [None] * len(puts)

    async def _get(self, _: int) -> int:
        key, size = random.choice(self._sent)
        reply = await self.leader.range(pb.RangeRequest(key=key), timeout=DEADLINE_S)
        assert len(reply.kvs[0].value) == size
        return 1

    async def _page(self, _: int) -> int:
        """Keys only, of any member: the least that a page can be."""
        self._turn += 1
        first = self._large[random.randrange(len(self._large) - PAGE)]
        request = pb.RangeRequest(
            key=first, range_end=LARGE + b"~", limit=PAGE, serializable=True, keys_only=True
        )
        calls = self._calls[self._turn % len(self._calls)]
        reply = await calls.range(request, timeout=DEADLINE_S)
        assert len(reply.kvs) == PAGE
        return 1
