"""Failpoints themselves, and processes that die at each of them around compaction and snapshots."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_machines import GROUP, all_entries
from mailraft.node import failpoints
from mailraft.node.engine import keys
from mailraft.node.engine.store import Store
from tidy import modules

# A follower that compacts its log at 30 of 40, then goes over to a snapshot of the other folder.
RECEIVER = """
import sys
from pathlib import Path
from mailraft.node import failpoints
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import *

GROUP = 7
birth = Configuration(1, (replica_id(1, 1), replica_id(2, 1), replica_id(3, 1)))
def filled(path, last, value):
    store = Store.open(Path(path), cluster_id="c1", node=1)
    store.create_group(GROUP, replica_id(1, 1), birth)
    for index in range(2, last + 1):
        entry = Entry(index, 1, EntryKind.COMMAND, b"%d" % index, (value * 300,))
        store.write([AppendEntries(GROUP, (entry,)),
                     ApplyWrite(GROUP, index, 1, (Put(b"k%05d" % index, value),))])
    store.flush()
    return store
source = filled(sys.argv[1], 600, b"new")
store = filled(sys.argv[2], 40, b"old")
failpoints.arm(sys.argv[3])
store.write([CompactLog(GROUP, LogBase(30, 1, birth))])
store.flush()
scan = source.snapshot(GROUP)
packs = list(scan.packs())
generation = store.burn_generation(GROUP)
store.flush()
failpoints.hit("snapshot.after_burn")
sink = store.receive(GROUP, generation)
for pack in packs:
    sink.add(pack)
failpoints.hit("snapshot.before_ingest")
sink.finish(scan.totals, scan.applied)
failpoints.hit("snapshot.after_ingest")
store.write([InstallSnapshot(GROUP, generation, LogBase(600, 1, birth), scan.applied.digest)])
store.flush()
store.drop_retired()
store.flush()
print("done")
"""
# The point to die at, where the log begins afterwards, and what was applied.
DEATHS = (
    ("compaction.before", 1, 40),
    ("compaction.after", 30, 40),
    ("snapshot.after_burn", 30, 40),
    ("snapshot.before_ingest", 30, 40),
    ("snapshot.after_ingest", 30, 40),
    ("snapshot.before_flip", 30, 40),
    ("snapshot.after_flip", 600, 600),
    ("snapshot.before_drop", 600, 600),
    ("snapshot.after_drop", 600, 600),
)


@pytest.fixture
def _disarmed() -> Iterator[None]:
    """Whatever a test armed is off afterwards."""
    yield
    failpoints.arm("")


@pytest.mark.usefixtures("_disarmed")
def test_a_point_acts_only_when_armed() -> None:
    """Off by default; each time, or the n-th time only; misspelling one is an error."""
    failpoints.hit("apply.before")
    failpoints.arm("apply.before=error; send.before=error@2")
    with pytest.raises(OSError, match=r"failpoint apply\.before"):
        failpoints.hit("apply.before")
    failpoints.hit("send.before")
    with pytest.raises(failpoints.FailpointError):
        failpoints.hit("send.before")
    failpoints.hit("send.before")
    failpoints.hit("apply.after")
    for wrong in (
        "aply.before=kill",
        "apply.before",
        "apply.before=explode",
        "apply.before=sleep:x",
    ):
        with pytest.raises(ValueError, match=r"failpoint|followed by|could not convert"):
            failpoints.arm(wrong)
    with pytest.raises(failpoints.FailpointError):
        failpoints.hit("apply.before")


def test_every_point_is_somewhere() -> None:
    """Each name stands in the node's code, and no other name does."""
    texts = [m.text for m in modules() if m.name.startswith("mailraft.node")]
    used = {name for text in texts for name in re.findall(r'failpoints\.hit\("([^"]+)"\)', text)}
    assert used == set(failpoints.NAMES)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("point", "base", "applied"), DEATHS, ids=str)
def test_kill_9_at_any_point_leaves_a_whole_replica(
    tmp_path: Path, point: str, base: int, applied: int
) -> None:
    """It is as it was, or as the snapshot made it; never in between, and nothing is left over."""
    line = [sys.executable, "-c", RECEIVER, str(tmp_path / "a"), str(tmp_path / "b")]
    died = subprocess.run(
        [*line, f"{point}=kill"], capture_output=True, text=True, check=False, timeout=100
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    store = Store.open(tmp_path / "b", cluster_id="c1", node=1)
    found = store.load(GROUP)
    assert (found.base.index, found.applied_index) == (base, applied)
    assert [e.index for e in all_entries(store)] == list(range(base + 1, found.last_index + 1))
    value = b"new" if applied == 600 else b"old"
    view = store.view(GROUP)
    rows = dict(view.scan(b"k", b"l"))
    assert rows == {b"k%05d" % index: value for index in range(2, applied + 1)}
    assert {store.body(GROUP, index, 0) for index in range(2, applied + 1)} == {value * 300}
    live = store._state(GROUP).birth.generation
    prefixes = {key[4:8] for key, _ in store._backend.scan(keys.STATE, b"", b"\xff" * 9)}
    assert prefixes == {live.to_bytes(4)}, "no other generation is left"
    assert not (tmp_path / "b" / "incoming").exists()
    store.close()


def test_a_node_arms_what_its_environment_says() -> None:
    """MAILRAFT_FAILPOINTS reaches every process that imports the node."""
    code = "from mailraft.node import failpoints; failpoints.hit('apply.after'); print('alive')"
    line = [sys.executable, "-c", code]
    environment = {**os.environ, failpoints.VARIABLE: "apply.after=kill"}
    died = subprocess.run(line, env=environment, capture_output=True, check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    environment.pop(failpoints.VARIABLE)
    lived = subprocess.run(line, env=environment, capture_output=True, check=False, timeout=60)
    assert lived.stdout == b"alive\n"
