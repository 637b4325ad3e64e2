"""What is acknowledged is on the disks of a majority: seen from below, by what they are asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailraft.client import Ack, AsyncClient
from mailraft.cluster.local import LocalCluster
from syncs import CannotTraceError, Sync, Trace, parse, synced_logs

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(120)]

DELIVERIES = 3
MAJORITY = 2  # of three nodes
# Nothing is synced for so long: what is synced then, is synced for the next delivery.
QUIET_S = 1.0
QUIET_DEADLINE_S = 30.0
# A disk that takes its time: else most syncs would be over before a reply that does not wait is.
DELAY_MS = 200


@pytest.fixture
def trace(cluster: LocalCluster, tmp_path: Path) -> Iterator[Trace]:
    """All nodes under strace, their disks slow; skips the test where that cannot be had."""
    running = [child for child in cluster.children() if child.name != "router"]
    try:
        pids = [child.pid for child in running]
        with Trace(pids, tmp_path / "trace", delay_ms=DELAY_MS) as attached:
            yield attached
    except CannotTraceError as error:
        pytest.skip(str(error))


async def until_quiet(trace: Trace) -> None:
    """Wait until no node syncs anything any more."""
    until_s = time.monotonic() + QUIET_DEADLINE_S
    before = -1
    while trace.size_bytes != before:
        assert time.monotonic() < until_s, "an idle cluster goes on syncing"
        before = trace.size_bytes
        await asyncio.sleep(QUIET_S)


@pytest.mark.slow
async def test_a_delivery_is_synced_before_it_is_acknowledged(
    cluster: LocalCluster, client: AsyncClient, trace: Trace
) -> None:
    """One delivery at QUORUM to a quiet cluster: on a majority of the nodes a sync of the
    write-ahead log begins after the request was sent and ends before the reply is there.
    """
    folders = {node: cluster.data_folder(node).resolve() / "db" for node in cluster.nodes}
    await client.create_account("alice")
    for number in range(DELIVERIES):
        await until_quiet(trace)
        sent_s = time.time()
        await client.deliver(b"Subject: %d\n\nbody\n" % number, to=["alice"], ack=Ack.QUORUM)
        replied_s = time.time()
        await until_quiet(trace)  # strace has written down everything
        synced = synced_logs(trace.syncs(), folders, sent_s, replied_s)
        assert len(synced) >= MAJORITY, f"synced by {synced or 'nobody'} before the reply"


# ---- the check itself ----------------------------------------------------------------------------

# A request was sent at 100.0 and answered at 101.0 in all transcripts here.
SENT_S, REPLIED_S = 100.0, 101.0
FOLDERS = {node: Path(f"/c/n{node}/data/db") for node in (1, 2, 3)}

WHOLE = """\
11 100.100000 fdatasync(9</c/n1/data/db/000004.log>) = 0 <0.000500>
22 100.200000 fsync(7</c/n2/data/db/000012.log>)     = 0 <0.000500>
"""
CROSSING = """\
11 100.100000 fdatasync(9</c/n1/data/db/000004.log> <unfinished ...>
22 100.100100 fdatasync(9</c/n2/data/db/000004.log> <unfinished ...>
33 100.100200 fdatasync(8</c/n3/data/watermark>) = 0 <0.000200>
22 100.400000 <... fdatasync resumed>)  = 0 (DELAYED) <0.299900>
11 100.500000 <... fdatasync resumed>)  = 0 <0.400000>
"""
NOISE = """\
strace: Process 11 attached with 12 threads
[pid    11] 100.100000 fdatasync(9</c/n1/data/db/000004.log>) = 0 <0.000500>
12 100.200000 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=13, si_uid=0} ---
13 100.300000 +++ exited with 0 +++
22 100.400000 fdatasync(9</c/n2/data/db/000004.log>) = 0 <0.000500>
"""
LATE_END = """\
11 100.100000 fdatasync(9</c/n1/data/db/000004.log> <unfinished ...>
22 100.200000 fdatasync(9</c/n9/data/db/000004.log>) = 0 <0.000500>
11 101.100000 <... fdatasync resumed>) = 0 <1.000000>
"""
FOREIGN_END = """\
11 100.100000 fdatasync(9</c/n1/data/db/000004.log> <unfinished ...>
22 100.200000 <... fdatasync resumed>) = 0 <0.100000>
"""


@pytest.mark.parametrize("transcript", [WHOLE, CROSSING, NOISE])
def test_syncs_in_time_are_found(transcript: str) -> None:
    """Whole lines, lines of threads that cross, and lines of anything else between them."""
    assert synced_logs(parse(transcript), FOLDERS, SENT_S, REPLIED_S) == {1, 2}


def test_a_sync_that_was_interrupted_ends_where_it_was_resumed() -> None:
    """Each thread's end belongs to its own beginning."""
    first, second, third = parse(CROSSING)
    assert first == Sync(Path("/c/n3/data/watermark"), 100.1002, 100.1002 + 0.0002)
    assert second == Sync(Path("/c/n2/data/db/000004.log"), 100.1001, 100.4)
    assert third == Sync(Path("/c/n1/data/db/000004.log"), 100.1, 100.5)


@pytest.mark.parametrize(
    ("why", "transcript"),
    [
        ("resumed after the reply", LATE_END),
        ("another thread's end", FOREIGN_END),
        ("nothing was synced", ""),
        ("early", "11 99.999999 fdatasync(9</c/n1/data/db/000004.log>) = 0 <0.500000>"),
        ("late", "11 100.900000 fdatasync(9</c/n1/data/db/000004.log>) = 0 <0.100001>"),
        ("after the reply", "11 101.000001 fdatasync(9</c/n1/data/db/000004.log>) = 0 <0.000001>"),
        ("failed", "11 100.1 fdatasync(9</c/n1/data/db/000004.log>) = -1 EIO (I/O error) <0.1>"),
        ("killed within", "11 100.100000 fdatasync(9</c/n1/data/db/000004.log>) = ?"),
        ("a table", "11 100.100000 fdatasync(9</c/n1/data/db/000004.sst>) = 0 <0.000500>"),
        ("RocksDB's own text", "11 100.100000 fdatasync(9</c/n1/data/db/LOG>) = 0 <0.000500>"),
        ("the watermark", "11 100.100000 fdatasync(9</c/n1/data/watermark>) = 0 <0.000500>"),
        ("a folder", "11 100.100000 fsync(9</c/n1/data/db>) = 0 <0.000500>"),
        ("another cluster", "11 100.100000 fsync(9</d/n1/data/db/000004.log>) = 0 <0.000500>"),
        ("never ended", "11 100.1 fdatasync(9</c/n1/data/db/000004.log> <unfinished ...>"),
        ("began unseen", "11 100.200000 <... fdatasync resumed>) = 0 <0.000900>"),
    ],
)
def test_anything_else_is_no_sync(why: str, transcript: str) -> None:
    """Logs that were not synced, not in time or not with success do not count."""
    synced = synced_logs(parse(transcript), FOLDERS, SENT_S, REPLIED_S)
    assert synced == set(), why
