"""One replica from one node to another: the next step of a move, from what is the case now.

learner added -> caught up -> votes -> old replica removed -> its rows gone. No step remembers the
one before it: the configuration that the group's leader tells says where the move stands, so any
controller can go on from there, and a step that is repeated is refused by its version.
"""

from __future__ import annotations

from mailraft.cluster.control.observed import Action, Advance, Change, HandOver, Observed
from mailraft.cluster.control.progress import advanced, finished
from mailraft.internal.v1 import control_pb2, meta_pb2
from mailraft.node.interfaces import ReplicaId, node_of
from mailraft.v1 import cluster_pb2, job_pb2

# As node.consensus.membership.PROMOTION_LAG_ENTRIES: a leader refuses to promote below it.
CAUGHT_UP_ENTRIES = 64
_STEPS = 4


def next_step(seen: Observed, record: meta_pb2.MetaJobRecord) -> Action | None:
    """What to do now for a MOVE job; None: wait."""
    group = record.job.spec.move.shard
    leader = seen.leader(group)
    if leader is None:
        return _progress(record, record.job.progress.steps_done, "waits for a leader")
    if not leader.configuration_committed:
        return None
    if record.job.state == job_pb2.JOB_STATE_CANCELLING and _can_cancel(record, leader):
        return _cancel(record, leader, "")
    step = _add(seen, record, leader) if record.new_replica_id else None
    return step or _remove(seen, record, leader)


def _add(
    seen: Observed, record: meta_pb2.MetaJobRecord, leader: control_pb2.ReplicaReport
) -> Action | None:
    """Towards the new replica's vote; None: it has it, or there is nothing to tell meanwhile."""
    new, (voters, learners) = record.new_replica_id, _members(leader)
    if new in voters:
        return None
    if _obsolete(seen, record):
        return _cancel(record, leader, "its target takes no replicas")
    if new not in learners:
        if any(node_of(each) == node_of(new) for each in learners):
            return None  # left over there by another job: plan.py removes it
        return change(leader, voters, learners | {new})
    if not _is_current(seen, leader, new):
        return _progress(record, 1, "the new replica catches up")
    if not _have_majority(seen, leader, voters | {new}):
        return _progress(record, 1, "waits until a majority of the voters is up to date")
    return change(leader, voters | {new}, learners - {new})


def _remove(
    seen: Observed, record: meta_pb2.MetaJobRecord, leader: control_pb2.ReplicaReport
) -> Action | None:
    """Once the new replica votes: the old one out, and its rows gone."""
    old, (voters, learners) = record.old_replica_id, _members(leader)
    if record.new_replica_id and record.new_replica_id not in voters:
        return None
    if old in voters:
        return _remove_voter(seen, record, leader, voters, learners)
    if old in learners:
        return change(leader, voters, learners - {old})
    if _is_left_over(seen, record, leader):
        return _progress(record, 3, "the old replica is removed")
    return _finished(record, job_pb2.JOB_STATE_SUCCEEDED, "")


def _remove_voter(
    seen: Observed,
    record: meta_pb2.MetaJobRecord,
    leader: control_pb2.ReplicaReport,
    voters: set[ReplicaId],
    learners: set[ReplicaId],
) -> Action | None:
    old = record.old_replica_id
    rest = voters - {old}
    if not _have_majority(seen, leader, rest):
        return _progress(record, 2, "waits until a majority of the others is up to date")
    if old == leader.replica_id:
        heir = max(
            (each for each in sorted(rest) if _is_current(seen, leader, each)),
            key=lambda each: _match(leader, each),
        )
        return HandOver(node_of(old), leader.group, heir)
    return change(leader, rest, learners)


def _can_cancel(record: meta_pb2.MetaJobRecord, leader: control_pb2.ReplicaReport) -> bool:
    """Behind the promotion a move is faster finished than undone."""
    return record.new_replica_id not in leader.configuration.voters or not record.new_replica_id


def _cancel(record: meta_pb2.MetaJobRecord, leader: control_pb2.ReplicaReport, why: str) -> Action:
    voters, learners = _members(leader)
    if record.new_replica_id in learners:
        return change(leader, voters, learners - {record.new_replica_id})
    return _finished(record, job_pb2.JOB_STATE_CANCELLED, why)


def _obsolete(seen: Observed, record: meta_pb2.MetaJobRecord) -> bool:
    """Whether the target left, is to leave, or is dead: another will be chosen."""
    target = seen.node(node_of(record.new_replica_id))
    return target is None or target.state != cluster_pb2.NODE_STATE_ACTIVE or seen.dead(target.id)


def _is_left_over(
    seen: Observed, record: meta_pb2.MetaJobRecord, leader: control_pb2.ReplicaReport
) -> bool:
    """Whether the map is behind, or the old replica still lies on a node that is not silent."""
    known = seen.group(leader.group)
    if known is None or known.configuration_version < leader.configuration.version:
        return True
    old = record.old_replica_id
    if not old or seen.silent(node_of(old)):
        return False
    if not seen.heard(node_of(old)):
        return True
    left = seen.replica(node_of(old), leader.group)
    return left is not None and left.replica_id == old


def _is_current(seen: Observed, leader: control_pb2.ReplicaReport, replica: ReplicaId) -> bool:
    """Also behind a short log only once it has answered: it may not exist yet, and if it voted then
    where another voter is lost, no majority could agree that it shall.
    """
    return (
        seen.heard(node_of(replica))
        and _match(leader, replica) > 0
        and _behind(leader, replica) <= CAUGHT_UP_ENTRIES
    )


def _have_majority(
    seen: Observed, leader: control_pb2.ReplicaReport, voters: set[ReplicaId]
) -> bool:
    """Whether these could decide at once, if they were the voters."""
    return sum(_is_current(seen, leader, each) for each in voters) > len(voters) // 2


def _members(leader: control_pb2.ReplicaReport) -> tuple[set[ReplicaId], set[ReplicaId]]:
    return set(leader.configuration.voters), set(leader.configuration.learners)


def _match(leader: control_pb2.ReplicaReport, replica: ReplicaId) -> int:
    if replica == leader.replica_id:
        return leader.last_index
    return next((at.match_index for at in leader.progress if at.replica_id == replica), 0)


def _behind(leader: control_pb2.ReplicaReport, replica: ReplicaId) -> int:
    return max(0, leader.last_index - _match(leader, replica))


def change(
    leader: control_pb2.ReplicaReport, voters: set[ReplicaId], learners: set[ReplicaId]
) -> Change:
    return Change(
        node_of(leader.replica_id),
        leader.group,
        leader.configuration.version,
        tuple(sorted(voters)),
        tuple(sorted(learners)),
    )


def _progress(record: meta_pb2.MetaJobRecord, done: int, activity: str) -> Advance | None:
    return advanced(record.job, done, _STEPS, activity)


def _finished(
    record: meta_pb2.MetaJobRecord, state: job_pb2.JobState.ValueType, activity: str
) -> Advance:
    return finished(record.job, state, activity, total=_STEPS)
