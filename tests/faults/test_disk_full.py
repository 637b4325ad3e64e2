"""Row 8: disks that fill up. Each node has a small file system of its own, in memory."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.faults.rows import note

from mailraft.client import AsyncClient, Consistency
from mailraft.client.options import ReadArgs
from mailraft.cluster.child import Child
from mailraft.cluster.errors import ExitCode
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.node.interfaces import replica_id
from mailraft.wire import errors

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

DISK_MIB, MEMTABLES_MIB, SHARDS = 60, 4, 2
# More than mail takes between two looks: a memtable may be written out, too.
RESERVE_RATIO = 0.2
RESERVE_BYTES = int(DISK_MIB * 1024**2 * RESERVE_RATIO)
FOR_MAIL_BYTES = 2 * RESERVE_BYTES
ACCOUNTS = tuple(f"account-{number}" for number in range(4))
MESSAGE_BYTES, SMALL_BYTES, PAUSE_S = 128 * 1024, 1024, 0.1
MESSAGES_MAX = 400  # more than fits
HANDS_OVER_S, ROOM_SEEN_S, ENDS_S = 3.0, 10.0, 30.0
BALLAST = "ballast"
# What was acknowledged, by account and message.
Kept = dict[tuple[str, str], bytes]


class SmallDiskChild(Child):
    """As LocalCluster starts it; a node's data lie on a file system that only it sees."""

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path) -> None:
        super().__init__(name, arguments, log_path)
        self.data = log_path.parents[1] / name / "data"
        if name != "router":
            steps = (
                'mkdir -p "$0" "$0.kept"',
                f'mount -t tmpfs -o size={DISK_MIB}m disk "$0"',
                'cp -a "$0.kept/." "$0"',
                'exec "$@"',
            )
            memtables = f"MAILRAFT_MEMTABLE_BYTES={MEMTABLES_MIB * 1024**2}"
            reserve = f"MAILRAFT_DISK_RESERVE_RATIO={RESERVE_RATIO}"
            shell = ("unshare", "-Urm", "sh", "-c", " && ".join(steps), str(self.data))
            self._command = (*shell, "env", memtables, reserve, *self._command)

    @property
    def disk(self) -> Path:
        """The same file system, for us."""
        return Path(f"/proc/{self.pid}/root") / self.data.relative_to("/")

    def fill(self, left_bytes: int) -> None:
        """Leave no more than this."""
        free_bytes = shutil.disk_usage(self.disk).free
        with (self.disk / BALLAST).open("ab") as ballast:
            size_bytes = ballast.tell()
            os.posix_fallocate(ballast.fileno(), size_bytes, max(1, free_bytes - left_bytes))

    @contextmanager
    def keep(self) -> Iterator[None]:
        """The process ends in here, and its file system with it: what is on it, apart from what
        `fill` took, is there for the next.
        """
        disk = os.open(self.disk, os.O_RDONLY)
        try:
            yield
            kept = self.data.with_name(f"{self.data.name}.kept")
            shutil.rmtree(kept)
            shutil.copytree(f"/proc/self/fd/{disk}", kept, ignore=lambda *_: {BALLAST})
        finally:
            os.close(disk)

    def clear(self) -> None:
        """Give back what `fill` took."""
        (self.disk / BALLAST).unlink()


def why_not() -> str:
    """What keeps a test from mounting anything; empty: nothing."""
    mount = ("unshare", "-Urm", "mount", "-t", "tmpfs", "disk", "/mnt")
    try:
        tried = subprocess.run(mount, capture_output=True, text=True, timeout=10, check=False)
    except OSError as error:
        return str(error)
    return tried.stderr.strip()


@pytest.fixture
async def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalCluster]:
    """Three nodes with small disks, ready; skips the test where nothing may be mounted."""
    reason = why_not()
    if reason:
        note("8 disk full", f"skipped: {reason}")
        pytest.skip(f"no file system of its own for a node: {reason}")
    monkeypatch.setattr("mailraft.cluster.local.Child", SmallDiskChild)
    async with LocalCluster(tmp_path / "cluster", LocalOptions(shards=SHARDS)) as running:
        await running.wait_ready()
        yield running


def child_of(cluster: LocalCluster, node: int) -> SmallDiskChild:
    """Of a node's process."""
    child = next(each for each in cluster.children() if each.name == f"n{node}")
    assert isinstance(child, SmallDiskChild)
    return child


async def test_disks_that_fill_up(small: LocalCluster) -> None:
    """A leader with a full disk hands over in 3 s and writes go on; once mail fills all disks more
    is refused, deletes are taken and nothing is lost; with room again all is taken. A node that
    runs out of its reserve too ends in order, the others go on, and it comes back with all it had.
    """
    disks = {node: child_of(small, node) for node in small.nodes}
    async with small.client() as client:
        for account in ACCOUNTS:
            await client.create_account(account)
        full = await small.leader_of(1)
        assert full is not None
        disks[full].fill(left_bytes=RESERVE_BYTES - 1)
        moved_s = await others_lead(small, full)
        kept = await fill_by_mail(client, 8, SMALL_BYTES)
        assert len(kept) == 8
        disks[full].clear()

        for disk in disks.values():
            disk.fill(left_bytes=FOR_MAIL_BYTES)
        kept |= await fill_by_mail(client, MESSAGES_MAX, MESSAGE_BYTES)
        acknowledged = len(kept)
        assert acknowledged < MESSAGES_MAX, "no disk was full"
        await check(client, kept)
        for account, message_id in list(kept)[::8]:
            await client.expunge_messages(account, [message_id])
            del kept[account, message_id]
        await check(client, kept)
        for disk in disks.values():
            disk.clear()
        again_s = await takes_mail_again(client, kept)

        dies = await small.leader_of(1)
        assert dies is not None
        await ends_without_room(client, disks[dies], kept)
        small.start(dies)
        await small.wait_ready()
        await check(client, kept, node=dies)
    note(
        "8 disk full",
        f"led elsewhere after {moved_s:.1f} s; {acknowledged} acknowledged until all were full, "
        f"0 lost; mail taken {again_s:.1f} s after there was room",
    )


async def fill_by_mail(client: AsyncClient, count: int, size_bytes: int) -> Kept:
    """Deliver so many, or until a disk is full for all who could lead; what was acknowledged."""
    kept: Kept = {}
    for number in range(count):
        account = ACCOUNTS[number % len(ACCOUNTS)]
        raw = b"Subject: %d\r\n\r\n" % number + os.urandom(size_bytes)
        try:
            receipt = await client.deliver(raw, to=[account])
        except errors.DiskFullError:
            break
        kept[account, receipt.recipients[0].message_id] = raw
        await asyncio.sleep(PAUSE_S)
    return kept


async def others_lead(cluster: LocalCluster, full: int) -> float:
    """Seconds until every shard is led elsewhere."""
    began_s = time.monotonic()
    while full in (leaders := await cluster.leaders()).values() or len(leaders) < SHARDS:
        assert time.monotonic() - began_s < HANDS_OVER_S, f"node {full} leads with a full disk"
        await asyncio.sleep(0.05)
    return time.monotonic() - began_s


async def check(client: AsyncClient, kept: Kept, node: int = 0) -> None:
    """All that was acknowledged is there, byte for byte, and nothing else. node: 0: any."""
    where = ReadArgs(consistency=Consistency.LINEARIZABLE)
    if node:
        where["replica"] = replica_id(node, 1)
    for account in ACCOUNTS:
        listed = client.iter_messages(account, **where)
        found = {(account, message.id) async for message in listed}
        assert found == {each for each in kept if each[0] == account}
    for (account, message_id), raw in kept.items():
        assert await client.fetch_body(account, message_id, **where) == raw


async def takes_mail_again(client: AsyncClient, kept: Kept) -> float:
    """Seconds until every account does."""
    began_s = time.monotonic()
    while len(told := await fill_by_mail(client, len(ACCOUNTS), SMALL_BYTES)) < len(ACCOUNTS):
        kept |= told
        assert time.monotonic() - began_s < ROOM_SEEN_S, "no mail is taken, and there is room"
        await asyncio.sleep(0.1)
    kept |= told
    return time.monotonic() - began_s


async def ends_without_room(client: AsyncClient, disk: SmallDiskChild, kept: Kept) -> None:
    """Not one byte is left: it ends by itself with an error, and tells why; mail goes on."""
    with disk.keep():
        disk.fill(left_bytes=0)
        began_s = time.monotonic()
        while disk.running:
            assert time.monotonic() - began_s < ENDS_S, f"{disk.name} runs on without room"
            kept |= await fill_by_mail(client, len(ACCOUNTS), SMALL_BYTES)
            await asyncio.sleep(0.1)
    assert disk.exit_status == ExitCode.FAILED
    told = disk.log_path.read_text("utf-8")
    assert "No space left on device" in told
    assert "Traceback" not in told
    after = await fill_by_mail(client, len(ACCOUNTS), SMALL_BYTES)
    assert len(after) == len(ACCOUNTS)
    kept |= after
