"""PostgreSQL: a primary, and two standbys of which one must have flushed; a mail is a row."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
from bench.compare import mails, work
from bench.compare.daemon import Daemon, finished, free_ports, own, ready
from bench.compare.interface import BATCH, MAILBOXES, PAGE, Address, Work

from mailraft.router.coalesce import Coalescer

Row = tuple[int, int, int, bytes]  # mailbox, UID, size, body

BINARIES = Path("/usr/lib/postgresql/15/bin")
USER = "postgres"
STANDBYS = ("s1", "s2")
# Connections. Not swept here.
CONNECTIONS = 32
DEADLINE_S = 20.0
LARGE = MAILBOXES
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "512MB",
    "wal_level": "replica",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "synchronous_commit": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "wal_compression": "lz4",
    "default_toast_compression": "lz4",
    "hot_standby": "on",
    "jit": "off",
}
ANY_ONE = "ANY 1 (s1, s2)"
TABLE = """
CREATE TABLE mail (
    mailbox int, uid bigint, flags int NOT NULL DEFAULT 0, size int NOT NULL, body bytea NOT NULL,
    PRIMARY KEY (mailbox, uid)
)
"""
INSERT = "INSERT INTO mail (mailbox, uid, size, body) VALUES ($1, $2, $3, $4)"
INSERT_MANY = (
    "INSERT INTO mail (mailbox, uid, size, body) "
    "SELECT * FROM unnest($1::int[], $2::bigint[], $3::int[], $4::bytea[])"
)
GET = "SELECT body FROM mail WHERE mailbox = $1 AND uid = $2"
PAGE_OF = "SELECT uid, flags, size FROM mail WHERE mailbox = $1 AND uid > $2 ORDER BY uid LIMIT $3"
FLAG = "UPDATE mail SET flags = flags # 1 WHERE mailbox = $1 AND uid = $2"


class PostgresServer:
    """Three servers on loopback, with Debian's PostgreSQL 15; fsync on."""

    name, title = "postgres", "PostgreSQL 15, two standbys, ANY 1"
    version_command: Sequence[str] = (str(BINARIES / "postgres"), "--version")

    def __init__(self) -> None:
        self._servers: list[Daemon] = []
        self._port = 0

    def missing(self) -> str:
        return "" if (BINARIES / "postgres").exists() else "postgresql-15"

    async def start(self, folder: Path) -> None:
        own(folder, USER)  # it refuses to run as root
        ports = free_ports(1 + len(STANDBYS))
        self._port = ports[0]
        primary = folder / "primary"
        initdb = [BINARIES / "initdb", "-D", primary, "-U", USER, "-A", "trust", "-E", "UTF8"]
        await finished([*map(str, initdb), "--no-sync"], folder / "initdb.log", user=USER)
        await self._launch(folder, "primary", ports[0])
        for name, port in zip(STANDBYS, ports[1:], strict=True):
            source = f"host=127.0.0.1 port={self._port} user={USER} application_name={name}"
            copy = [BINARIES / "pg_basebackup", "-D", folder / name, "-R", "-c", "fast", "-d"]
            await finished([*map(str, copy), source], folder / f"{name}.copy.log", user=USER)
            await self._launch(folder, name, port)
        connection = await self._connect()
        await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{ANY_ONE}'")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute(TABLE)
        await connection.close()
        await ready(self._servers, self._replicates)

    async def _launch(self, folder: Path, name: str, port: int) -> None:
        options = [f"-c{key}={value}" for key, value in {**SETTINGS, "port": port}.items()]
        command = [str(BINARIES / "postgres"), "-D", str(folder / name), *options]
        # SIGINT: a fast shutdown, which does not wait for clients.
        server = Daemon(command, folder / f"{name}.log", user=USER, stop=signal.SIGINT)
        server.start()
        self._servers.append(server)

        async def serves() -> bool:
            try:
                connection = await asyncpg.connect(host="127.0.0.1", port=port, user=USER)
            except asyncpg.PostgresError:
                return False  # it starts up
            await connection.close()
            return True

        await ready([server], serves)

    async def _connect(self) -> Any:
        return await asyncpg.connect(host="127.0.0.1", port=self._port, user=USER)

    async def _replicates(self) -> bool:
        connection = await self._connect()
        count = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'"
        )
        await connection.close()
        return bool(count == len(STANDBYS))

    async def stop(self) -> None:
        for server in reversed(self._servers):  # standbys first: nobody waits for them
            await server.stop()

    async def settle(self) -> None:
        connection = await self._connect()
        await connection.execute("CHECKPOINT", timeout=60)
        await connection.close()

    @property
    def address(self) -> Address:
        return {"port": self._port}

    def pids(self) -> Sequence[int]:
        return [server.pid for server in self._servers]


class PostgresClient:
    """Connections that are taken in turns; statements are prepared."""

    errors: tuple[type[Exception], ...] = (asyncpg.PostgresError, OSError)

    def __init__(self) -> None:
        self.works: Mapping[str, Work] = {
            "deliver128": Work(128, self._deliver),
            "deliver128c": Work(128, self._deliver_together),
            "bulk": Work(10, self._bulk),
            "single": Work(1, self._deliver),
            "get": Work(32, self._get),
            "page": Work(8, self._page),
            "keywords": Work(32, self._flag),
        }
        self._mails = mails.Mails(mails.load(), MAILBOXES)
        self._sent: list[tuple[int, int, int]] = []
        self._large = 0
        self._all: list[Any] = []
        self._idle: list[dict[str, Any]] = []
        # In turns: who comes first is served first, which a pool of asyncpg's does not promise.
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._together: Coalescer[Row, None] = Coalescer(self._send, items_max=BATCH)

    async def open(self, address: Address, large_mailbox: int) -> None:
        for _ in range(CONNECTIONS):
            connection = await asyncpg.connect(host="127.0.0.1", port=address["port"], user=USER)
            self._all.append(connection)
            texts = (INSERT, INSERT_MANY, GET, PAGE_OF, FLAG)
            self._idle.append({text: await connection.prepare(text) for text in texts})
        await work.run_units(self.works["bulk"], self._mails.count, self.errors)
        while self._large < large_mailbox:
            rows = []
            for _ in range(BATCH):
                self._large += 1
                _, _, raw = self._mails.next()
                rows.append((LARGE, self._large, len(raw), raw))
            await self._many(rows)
        await self._all[0].execute("ANALYZE mail")

    async def close(self) -> None:
        for connection in self._all:
            await connection.close()

    async def _ask(self, text: str, *values: Any) -> Any:
        async with self._turns:
            statements = self._idle.pop()
            try:
                return await statements[text].fetch(*values)
            finally:
                self._idle.append(statements)

    def _row(self) -> Row:
        number, mailbox, raw = self._mails.next()
        return mailbox, number, len(raw), raw

    async def _deliver(self, _: int) -> int:
        row = self._row()
        await self._ask(INSERT, *row)
        self._sent.append(row[:3])
        return 1

    async def _deliver_together(self, _: int) -> int:
        row = self._row()
        until_s = asyncio.get_running_loop().time() + DEADLINE_S
        await self._together.submit(row, row[2], until_s)
        self._sent.append(row[:3])
        return 1

    async def _send(self, rows: Sequence[Row], _: float) -> Sequence[None]:
        await self._many(rows)
        return [None] * len(rows)

    async def _bulk(self, _: int) -> int:
        rows = [self._row() for _ in range(BATCH)]
        await self._many(rows)
        self._sent += [row[:3] for row in rows]
        return len(rows)

    async def _many(self, rows: Sequence[Row]) -> None:
        await self._ask(INSERT_MANY, *(list(column) for column in zip(*rows, strict=True)))

    async def _get(self, _: int) -> int:
        mailbox, uid, size = random.choice(self._sent)
        [row] = await self._ask(GET, mailbox, uid)
        assert len(row[0]) == size
        return 1

    async def _page(self, _: int) -> int:
        first = random.randrange(self._large - PAGE)
        assert len(await self._ask(PAGE_OF, LARGE, first, PAGE)) == PAGE
        return 1

    async def _flag(self, _: int) -> int:
        mailbox, uid, _size = random.choice(self._sent)
        await self._ask(FLAG, mailbox, uid)
        return 1
