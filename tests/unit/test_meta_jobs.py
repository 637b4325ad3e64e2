"""The meta group's jobs and settings, and that its state stays sound whatever is asked."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from mailraft.cluster import mapfile
from mailraft.cluster.meta import jobs, settings, state
from mailraft.internal.v1 import meta_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import node_of
from mailraft.v1 import common_pb2, job_pb2
from meta_driver import (
    ACTIVE,
    DRAINED,
    DRAINING,
    LEAVING,
    REMOVED,
    START_MS,
    Meta,
    first_map,
    node,
    refused,
)

SEEDS = 40


# ---- jobs


def test_a_move_gets_its_replica_ids_once() -> None:
    """New ones that nobody had, also of a move that came to nothing."""
    meta = Meta(first_map())
    source, [to] = meta.on(1)[0], meta.off(1)
    first = meta.move(1, source, to).job
    assert node_of(first.new_replica_id) == to
    assert node_of(first.old_replica_id) == source
    assert refused(meta.move(1, source, to)) == "JOB_CONFLICT"
    meta.advance(first.job, job_pb2.JOB_STATE_CANCELLED)
    second = meta.move(1, source, to).job
    assert second.new_replica_id > first.new_replica_id
    assert second.job.id != first.job.id
    assert second.job.version == 1
    assert second.job.state == job_pb2.JOB_STATE_PENDING


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda meta: meta.move(9, 1, 2), "SHARD_NOT_FOUND"),
        (lambda meta: meta.move(1), "BAD_FIELD"),
        (lambda meta: meta.move(1, meta.off(1)[0], meta.on(1)[0]), "REPLICA_NOT_FOUND"),
        (lambda meta: meta.move(1, meta.on(1)[0], meta.on(1)[1]), "JOB_CONFLICT"),
        (lambda meta: meta.move(1, meta.on(1)[0], 77), "NODE_NOT_FOUND"),
        (lambda meta: meta.begin(verify=job_pb2.VerifySpec()), "FEATURE_NOT_ENABLED"),
        (lambda meta: meta.begin(), "FEATURE_NOT_ENABLED"),
        (lambda meta: meta.begin(drain=job_pb2.DrainSpec(node_id=77)), "NODE_NOT_FOUND"),
    ],
    ids=range(8),
)
def test_a_job_that_makes_no_sense_is_refused(
    ask: Callable[[Meta], meta_pb2.MetaReply], why: str
) -> None:
    """And takes no number."""
    meta = Meta(first_map())
    before = meta.head
    assert refused(ask(meta)) == why
    assert meta.head == before


def test_a_replica_goes_only_to_an_active_node_apart_from_the_others() -> None:
    """Not to one that drains or leaves, nor beside another replica on the same host."""
    meta = Meta(first_map())
    [free] = meta.off(1)
    meta.set_state(free, DRAINING)
    assert refused(meta.move(1, meta.on(1)[0], free)) == "BAD_FIELD"
    hosts = Meta(first_map(3, host=""))
    first = meta_pb2.AdmitNode(node=node(4, host="h"))
    hosts.run(admit_node=first)
    hosts.record(1, 2, 1, 2, 4)
    twin = hosts.admit(node(5, host="h")).node.id
    assert refused(hosts.move(1, 1, twin)) == "BAD_FIELD"
    assert refused(hosts.move(1, 4, twin)) == ""


def test_jobs_about_nodes_set_their_state_at_once() -> None:
    """Drain and decommission; a twin is refused, and so is a second rebalance."""
    meta = Meta(first_map())
    meta.begin(drain=job_pb2.DrainSpec(node_id=1))
    assert meta.map.nodes[0].state == DRAINING
    assert refused(meta.begin(drain=job_pb2.DrainSpec(node_id=1))) == "JOB_CONFLICT"
    meta.begin(decommission=job_pb2.DecommissionSpec(node_id=2))
    assert meta.map.nodes[1].state == LEAVING
    again = meta.begin(decommission=job_pb2.DecommissionSpec(node_id=2))
    assert refused(again) == "JOB_CONFLICT"
    child = meta.begin("j1", rebalance=job_pb2.RebalanceSpec()).job.job
    assert child.parent_job_id == "j1"
    assert refused(meta.begin(rebalance=job_pb2.RebalanceSpec())) == "JOB_CONFLICT"


def test_a_job_advances_only_from_the_version_that_was_seen() -> None:
    """That fences a controller that has not seen the latest; a finished job stays as it is."""
    meta = Meta(first_map())
    job = meta.begin(rebalance=job_pb2.RebalanceSpec()).job.job
    epoch = meta.map.epoch
    meta.now_ms += 5
    running = meta.advance(job, job_pb2.JOB_STATE_RUNNING, job.version).job.job
    assert (running.version, running.started_time_ms) == (2, START_MS + 5)
    assert refused(meta.advance(job, job_pb2.JOB_STATE_RUNNING, job.version)) == "JOB_CONFLICT"
    running.findings.add(message="found")
    told = meta.advance(running, job_pb2.JOB_STATE_RUNNING, 2).job.job
    told = meta.advance(told, job_pb2.JOB_STATE_RUNNING, 3).job.job
    assert [each.message for each in told.findings] == ["found"]
    done = meta.advance(told, job_pb2.JOB_STATE_SUCCEEDED, 4).job.job
    assert done.finished_time_ms == START_MS + 5
    assert refused(meta.advance(done, job_pb2.JOB_STATE_RUNNING, 5)) == "JOB_FINISHED"
    done.id = "j99"
    assert refused(meta.advance(done, job_pb2.JOB_STATE_RUNNING)) == "JOB_NOT_FOUND"
    assert meta.map.epoch == epoch


def test_finished_jobs_are_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then forgotten, some with each job that begins; open ones never. There is a limit."""
    meta = Meta(first_map())
    kept = meta.move(1, meta.on(1)[0], meta.off(1)[0]).job.job
    for _ in range(25):
        job = meta.begin(rebalance=job_pb2.RebalanceSpec()).job.job
        meta.advance(job, job_pb2.JOB_STATE_SUCCEEDED)
    assert len(list(state.jobs(meta.views[0]))) == 26
    meta.now_ms += jobs.JOBS_KEPT_MS + 1
    counts = []
    for _ in range(3):
        job = meta.begin(rebalance=job_pb2.RebalanceSpec()).job.job
        counts.append(len(list(state.jobs(meta.views[0]))))
        meta.advance(job, job_pb2.JOB_STATE_SUCCEEDED)
    assert counts == [17, 8, 4]
    assert state.job(meta.views[0], kept.id) is not None
    monkeypatch.setattr(jobs, "OPEN_JOBS_MAX", 1)
    assert refused(meta.begin(rebalance=job_pb2.RebalanceSpec())) == "LIMIT_REACHED"


# ---- settings


def test_settings_change_by_field() -> None:
    """Only what is named, under a new etag; not the map's epoch, which they are no part of."""
    meta = Meta(first_map())
    epoch, before = meta.map.epoch, settings.told(meta.head)
    told = meta.change("concurrent_moves", concurrent_moves=7, replicas_per_shard=5).settings
    assert (told.concurrent_moves, told.replicas_per_shard) == (7, before.replicas_per_shard)
    assert told.etag != before.etag
    stale = meta.change("concurrent_moves", concurrent_moves=8, etag=before.etag)
    assert refused(stale) == "ETAG_MISMATCH"
    assert refused(meta.change("concurrent_moves", concurrent_moves=8, etag=told.etag)) == ""
    assert meta.map.epoch == epoch


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ((), {}),
        (("etag",), {}),
        (("nothing",), {}),
        (("replicas_per_shard",), {"replicas_per_shard": 2}),
        (("concurrent_moves",), {"concurrent_moves": 0}),
        (("concurrent_moves",), {"concurrent_moves": settings.CONCURRENT_MOVES_MAX + 1}),
    ],
)
def test_settings_that_cannot_be_are_refused(
    fields: tuple[str, ...], values: dict[str, object]
) -> None:
    """With nothing changed."""
    meta = Meta(first_map())
    before = meta.head
    assert refused(meta.change(*fields, **values)) == "BAD_FIELD"
    assert meta.head == before


def test_accepted_by_default_needs_that_it_is_allowed() -> None:
    """Whichever of the two is changed first, and last."""
    meta, accepted = Meta(first_map()), common_pb2.ACK_LEVEL_ACCEPTED
    assert refused(meta.change("default_ack", default_ack=accepted)) == "LEVEL_NOT_ALLOWED"
    assert refused(meta.change("allow_accepted", allow_accepted=True)) == ""
    assert refused(meta.change("default_ack", default_ack=accepted)) == ""
    assert refused(meta.change("allow_accepted", allow_accepted=False)) == "LEVEL_NOT_ALLOWED"


# ---- whatever comes


def anything(meta: Meta, chance: Random) -> None:
    """A command that may or may not make sense."""
    number, shard = chance.randrange(9), chance.randrange(5)
    match chance.randrange(8):
        case 0:
            meta.admit(node(number, name=f"n{chance.randrange(9)}"))
        case 1:
            meta.set_state(number, chance.choice((ACTIVE, DRAINING, DRAINED, LEAVING, REMOVED)))
        case 2:
            meta.describe(number, "0.2.0", f"n{chance.randrange(9)}:1")
        case 3:
            on = [chance.randrange(9) for _ in range(chance.randrange(5))]
            meta.record(shard, chance.randrange(12), *on)
        case 4:
            meta.move(shard, chance.choice((0, number)), chance.randrange(9))
        case 5:
            meta.begin(decommission=job_pb2.DecommissionSpec(node_id=number))
        case 6:
            meta.change("concurrent_moves", concurrent_moves=number)
        case _:
            job = job_pb2.Job(id=f"j{chance.randrange(30)}")
            meta.advance(job, chance.choice(job_pb2.JobState.values()))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_is_asked_the_state_stays_sound(seed: int) -> None:
    """The map is one that every process takes, and its epoch rises when it changes and never else;
    no number is given twice, no shard has two open moves, nothing is on a node that left. Two
    replicas have the same bytes (Meta.apply).
    """
    chance, meta = Random(seed), Meta(first_map())
    given: set[int] = set()
    for _ in range(150):
        before, head = meta.map, meta.head
        anything(meta, chance)
        after = meta.map
        mapfile.check(after)
        epoch, before.epoch = before.epoch, after.epoch
        assert (after.epoch > epoch) == (after != before)
        now = meta.head
        for name in ("next_node_id", "next_incarnation", "next_job"):
            assert getattr(now, name) >= getattr(head, name)
        records = list(state.open_jobs(meta.views[0]))
        moving = [each.job.spec.move.shard for each in records if each.job.spec.HasField("move")]
        assert len(set(moving)) == len(moving)
        given.update(each.new_replica_id for each in records)
        new = [each.new_replica_id & 0xFFFFFFFF for each in records if each.new_replica_id]
        assert len(set(new)) == len(new)
        assert all(each < now.next_incarnation for each in new)
        gone = {each.id for each in after.nodes if each.state == REMOVED}
        held = {each.node_id for part in (after.meta, *after.shards) for each in part.replicas}
        assert not gone & (held | {node_of(each.new_replica_id) for each in records})
    assert meta.views[0].get(keys.CLUSTER_HEAD) is not None
