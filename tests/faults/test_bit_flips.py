"""Row 7: a bit flips in each kind of file of one of three nodes, one kind at a time.

Found, never served, never led with, repaired from the peers, and nothing acknowledged is lost.
A supervisor starts a node again that ends by itself, as systemd does.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.faults.damage import (
    ACCOUNTS,
    ENDS_S,
    REPAIRED_S,
    Mail,
    SmallMemoryChild,
    Watched,
    flip,
)
from tests.faults.rows import note

from mailraft.cluster import mapfile
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.node.interfaces import MAP_FILE

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

VICTIM, SHARDS, MESSAGES = 3, 2, 100
REPAIRED = "all is fetched again"
# Of a log that a node leaves, well past its last mark.
LOG, LOG_BYTES = "write-ahead log", 128 * 1024


@dataclass(frozen=True, slots=True)
class Kind:
    """Of file, and when its bit flips: while the node runs, or while it is down."""

    name: str
    pattern: str
    running: bool
    at: float = 0.5

    def __str__(self) -> str:
        return f"{self.pattern.removeprefix('db/')}-{'running' if self.running else 'down'}"


REBUILT = (
    Kind("table (SST)", "db/*.sst", running=True),
    Kind("blob file", "db/*.blob", running=True),
    Kind(LOG, "db/*.log", running=True),
    Kind("MANIFEST", "db/MANIFEST-*", running=True),
    Kind("CURRENT", "db/CURRENT", running=True),
    Kind(LOG, "db/*.log", running=False, at=0.2),
    Kind("MANIFEST", "db/MANIFEST-*", running=False),
    Kind("CURRENT", "db/CURRENT", running=False, at=0.9),
)
# What nobody is served from: told, and the node goes on.
TOLD = ("OPTIONS-*", "IDENTITY", "rocksdict-config.json")


@pytest.fixture
async def flipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalCluster]:
    """Three nodes with small memtables, ready."""
    monkeypatch.setattr("mailraft.cluster.local.Child", SmallMemoryChild)
    async with LocalCluster(tmp_path / "cluster", LocalOptions(shards=SHARDS)) as running:
        await running.wait_ready()
        yield running


@pytest.mark.parametrize("kind", REBUILT, ids=str)
async def test_a_bit_flips_in_what_is_stored(flipped: LocalCluster, kind: Kind) -> None:
    """The node finds it by its scrub, or at its start; ends, and is filled again by its peers."""
    watched, mail = Watched(flipped, VICTIM), Mail(flipped, VICTIM)
    async with flipped.client() as client:
        for account in ACCOUNTS:
            await client.create_account(account)
        await mail.deliver(client, MESSAGES)
        await watched.stop()  # what it has is in tables and blobs then
        flipped.start(VICTIM)
        await flipped.wait_ready()
        async with mail.going_on():
            await damaged(watched, mail, kind)
        await mail.all_there(client, VICTIM)
    assert not mail.wrong
    assert not watched.led_while_fetching
    assert mail.served_by_victim > 0, "nobody read there: nothing is shown"


async def damaged(watched: Watched, mail: Mail, kind: Kind) -> None:
    """Flip, have it found and repaired, and fill in the row."""
    ended, kept = watched.ended, len(mail.kept)
    log = watched.log_position()
    if kind.running:
        path = await watched.settled(kind.pattern)
        async with watched.supervised():
            await watched.scrubbed()
            assert watched.ended == ended, "it found damage where there is none"
            flip(path, kind.at)
            began_s = time.monotonic()
            await watched.scrubbed()
            repaired_s = time.monotonic() - began_s
        assert watched.ended == ended + 1
        by = "scrub"
    else:
        if kind.name == LOG:
            await watched.until(lambda: watched.largest(kind.pattern)[1] > LOG_BYTES, LOG, ENDS_S)
        watched.cluster.kill(watched.node)  # in good order it leaves an empty log
        flip(watched.largest(kind.pattern)[0], kind.at)
        began_s = time.monotonic()
        watched.cluster.start(watched.node)
        async with watched.supervised():
            await watched.until(watched.keeps, "not set aside", ENDS_S)
            await watched.until(
                lambda: REPAIRED in watched.log_since(log), "not repaired", REPAIRED_S
            )
        repaired_s = time.monotonic() - began_s
        assert watched.ended == ended
        by = "start"
    assert REPAIRED in watched.log_since(log)
    assert not watched.keeps()
    await watched.cluster.wait_ready()
    assert len(mail.kept) > kept, "no mail was taken meanwhile"
    note(f"7 bit flip: {kind.name}", f"found by {by}; repaired in {repaired_s:.1f} s; 0 lost")


async def test_a_bit_flips_in_what_nothing_is_served_from(flipped: LocalCluster) -> None:
    """RocksDB's notes to itself are told of and harm nothing; the copy of the map is written again,
    or not used at a start; one of the watermark's two slots is told of, and the other counts.
    """
    watched, mail = Watched(flipped, VICTIM), Mail(flipped, VICTIM)
    async with flipped.client() as client:
        for account in ACCOUNTS:
            await client.create_account(account)
        await mail.deliver(client, 40)
        async with mail.going_on(), watched.supervised():
            for name in TOLD:
                path = await watched.settled(f"db/{name}")
                await watched.scrubbed()
                log = watched.log_position()
                flip(path)
                await watched.scrubbed()
                assert "Nothing reads it" in watched.log_since(log)
                note(f"7 bit flip: {name}", "found by scrub; harmless: nothing reads it")

            path = await watched.settled(MAP_FILE)
            await watched.scrubbed()
            flip(path)
            began_s = time.monotonic()
            await watched.scrubbed()
            mapfile.load(path, sealed=True)
            repaired_s = time.monotonic() - began_s
            note("7 bit flip: copy of the map", f"found by scrub; repaired in {repaired_s:.1f} s")
        assert not watched.ended

        await watched.stop()
        flip(path)
        flip(watched.folder / "watermark", at=0.0)  # the first of its two slots
        log = watched.log_position()
        flipped.start(VICTIM)
        await flipped.wait_ready()
        assert "is damaged and not used" in watched.log_since(log)
        mapfile.load(path, sealed=True)
        assert not watched.keeps()
        await mail.all_there(client, VICTIM)
        note("7 bit flip: copy of the map, watermark", "found by start; repaired by it")
    assert not mail.wrong
