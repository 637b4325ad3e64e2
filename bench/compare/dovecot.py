"""Dovecot: LMTP to deliver and IMAP to read, mdbox; one node, not replicated."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.compare import mails, work
from bench.compare.daemon import Daemon, free_ports, make_folder, own, ready
from bench.compare.interface import FAN_OUT, MAILBOXES, PAGE, Address, Work

LARGE = "large"
MAIL_USER = "mail"
# Connections. Not swept here.
SENDERS, READERS = 16, 8
LINE_BYTES_MAX = 1024 * 1024
IDLE_S_MAX = 60.0
SUMMARY = "(UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE)"
CONFIG = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = /dev/stderr
instance_name = compare
listen = 127.0.0.1
protocols = imap lmtp
ssl = no
disable_plaintext_auth = no
mail_location = mdbox:{folder}/mail/%n
mail_fsync = optimized
mail_cache_min_mail_count = 0
first_valid_uid = 1
first_valid_gid = 1
mail_max_userip_connections = 100
auth_username_format = %n
postmaster_address = postmaster@example.org
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid={user} gid={user} home={folder}/mail/%n
}}
service lmtp {{
  process_min_avail = 2
  process_limit = 64
  service_count = 0
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {lmtp}
  }}
}}
service imap-login {{
  service_count = 0
  chroot =
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service imap {{
  process_limit = 256
}}
service anvil {{
  chroot =
}}
"""


class DovecotServer:
    """One node on loopback, with Debian's Dovecot."""

    name, title = "dovecot", "Dovecot, LMTP and IMAP, mdbox, 1 node"
    version_command: Sequence[str] = ("dovecot", "--version")

    def __init__(self) -> None:
        self._server: Daemon | None = None
        self._lmtp = self._imap = 0

    def missing(self) -> str:
        if not (shutil.which("dovecot") and Path("/usr/lib/dovecot/lmtp").exists()):
            return "dovecot-imapd dovecot-lmtpd"
        return "" if os.geteuid() == 0 else "root, which its processes change their user from"

    async def start(self, folder: Path) -> None:
        own(make_folder(folder / "mail"), MAIL_USER)
        self._lmtp, self._imap = free_ports(2)
        path = folder / "dovecot.conf"
        text = CONFIG.format(folder=folder, user=MAIL_USER, lmtp=self._lmtp, imap=self._imap)
        path.write_text(text, "utf-8")
        self._server = Daemon(["dovecot", "-F", "-c", str(path)], folder / "dovecot.log")
        self._server.start()
        await ready([self._server], self._serves)

    async def _serves(self) -> bool:
        for port in (self._lmtp, self._imap):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
        return True

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()

    async def settle(self) -> None:
        """Kernel buffers are all it leaves behind."""

    @property
    def address(self) -> Address:
        return {"lmtp": self._lmtp, "imap": self._imap}

    def pids(self) -> Sequence[int]:
        return [] if self._server is None else [self._server.pid]


class Lmtp:
    """One connection (RFC 2033), commands pipelined."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.used_s = time.monotonic()

    @classmethod
    async def open(cls, port: int) -> Lmtp:
        found = cls(*await asyncio.open_connection("127.0.0.1", port))
        await found._expect(b"220")
        found._writer.write(b"LHLO compare.example.org\r\n")
        await found._expect(b"250")
        return found

    async def send(self, raw: bytes, to: Sequence[str]) -> None:
        """Raises ValueError unless each recipient has it."""
        self.used_s = time.monotonic()
        lines = [b"MAIL FROM:<compare@example.org>"]
        lines += [b"RCPT TO:<%s@example.org>" % each.encode() for each in to]
        self._writer.write(b"\r\n".join([*lines, b"DATA", b""]))
        for _ in lines:
            await self._expect(b"250")
        await self._expect(b"354")
        stuffed = re.sub(rb"(?m)^\.", b"..", raw)
        self._writer.write(stuffed + (b".\r\n" if raw.endswith(b"\r\n") else b"\r\n.\r\n"))
        for _ in to:
            await self._expect(b"250")

    def close(self) -> None:
        self._writer.close()

    async def _expect(self, code: bytes) -> None:
        line = await self._reader.readline()
        while line[3:4] == b"-":
            line = await self._reader.readline()
        if not line.startswith(code):
            raise ValueError(f"LMTP: {line!r}")


class Imap:
    """One connection (RFC 3501) with a mailbox selected, a command at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.used_s = time.monotonic()
        self.uids: list[int] = []

    @classmethod
    async def open(cls, port: int, user: str) -> Imap:
        opened = await asyncio.open_connection("127.0.0.1", port, limit=LINE_BYTES_MAX)
        found = cls(*opened)
        await found._reader.readline()
        await found.ask(f"LOGIN {user} x")
        await found.ask("SELECT INBOX")
        [line, *_], _ = await found.ask("UID SEARCH ALL")
        found.uids = [int(uid) for uid in line.split()[2:]]
        return found

    async def ask(self, command: str) -> tuple[list[bytes], list[bytes]]:
        """Untagged lines, and the literals in them. Raises ValueError unless it says OK."""
        self.used_s = time.monotonic()
        self._writer.write(f"a {command}\r\n".encode())
        lines: list[bytes] = []
        literals: list[bytes] = []
        while True:
            line = await self._reader.readline()
            while literal := re.search(rb"\{(\d+)\}\r\n$", line):
                literals.append(await self._reader.readexactly(int(literal[1])))
                line = line[: literal.start()] + await self._reader.readline()
            if line.startswith(b"a OK"):
                return lines, literals
            if not line.startswith(b"*"):
                raise ValueError(f"IMAP: {line!r}")
            lines.append(line)

    def close(self) -> None:
        self._writer.close()


def _idle(connection: Lmtp | Imap) -> bool:
    """Whether Dovecot may have ended it by now: it does so after five minutes."""
    return time.monotonic() > connection.used_s + IDLE_S_MAX


class DovecotClient:
    """LMTP connections to deliver, IMAP connections to read; opened when first needed."""

    errors: tuple[type[Exception], ...] = (ValueError, OSError)

    def __init__(self) -> None:
        self.works: Mapping[str, Work] = {
            "deliver128": Work(SENDERS, self._deliver),
            "single": Work(1, self._deliver),
            "fanout": Work(SENDERS, self._fan_out),
            "get": Work(READERS, self._get),
            "page": Work(READERS, self._page),
            "keywords": Work(READERS, self._flag),
        }
        self._mails = mails.Mails(mails.load(), MAILBOXES)
        self._address: Address = {}
        self._senders: list[Lmtp] = []
        self._readers: list[Imap] = []
        self._large_readers: list[Imap] = []

    async def open(self, address: Address, large_mailbox: int) -> None:
        self._address = address
        self._senders = [await Lmtp.open(address["lmtp"]) for _ in range(SENDERS)]
        await work.run_units(self.works["deliver128"], self._mails.count, self.errors)
        port = address["imap"]
        self._readers = [await Imap.open(port, f"box-{number:03d}") for number in range(READERS)]
        if large_mailbox:
            await work.run_units(Work(SENDERS, self._deliver_large), large_mailbox, self.errors)
            self._large_readers = [await Imap.open(port, LARGE) for _ in range(READERS)]
            await self._large_readers[0].ask(f"FETCH 1:* {SUMMARY}")  # now its cache has them

    async def close(self) -> None:
        for sender in self._senders:
            sender.close()
        for reader in (*self._readers, *self._large_readers):
            reader.close()

    async def _sender(self, task: int) -> Lmtp:
        if _idle(self._senders[task]):
            self._senders[task].close()
            self._senders[task] = await Lmtp.open(self._address["lmtp"])
        return self._senders[task]

    async def _reader(self, readers: list[Imap], task: int, user: str) -> Imap:
        if _idle(readers[task]):
            readers[task].close()
            readers[task] = await Imap.open(self._address["imap"], user)
        return readers[task]

    async def _deliver(self, task: int) -> int:
        _, mailbox, raw = self._mails.next()
        await (await self._sender(task)).send(raw, [f"box-{mailbox:03d}"])
        return 1

    async def _deliver_large(self, task: int) -> int:
        _, _, raw = self._mails.next()
        await (await self._sender(task)).send(raw, [LARGE])
        return 1

    async def _fan_out(self, task: int) -> int:
        _, mailbox, raw = self._mails.next()
        to = [f"box-{(mailbox + number) % MAILBOXES:03d}" for number in range(FAN_OUT)]
        await (await self._sender(task)).send(raw, to)
        return len(to)

    async def _get(self, task: int) -> int:
        reader = await self._reader(self._readers, task, f"box-{task:03d}")
        _, [body] = await reader.ask(f"UID FETCH {random.choice(reader.uids)} (BODY.PEEK[])")
        assert len(body) >= mails.LEAST_BYTES
        return 1

    async def _page(self, task: int) -> int:
        reader = await self._reader(self._large_readers, task, LARGE)
        first = random.randrange(1, len(reader.uids) - PAGE)
        lines, _ = await reader.ask(f"FETCH {first}:{first + PAGE - 1} {SUMMARY}")
        assert len(lines) >= PAGE
        return 1

    async def _flag(self, task: int) -> int:
        reader = await self._reader(self._readers, task, f"box-{task:03d}")
        uid, sign = random.choice(reader.uids), random.choice("+-")
        await reader.ask(f"UID STORE {uid} {sign}FLAGS.SILENT (\\Flagged)")
        return 1
