"""The meta group's state machine: what it decides, what it refuses, and that it does so alike."""

from __future__ import annotations

import uuid

import pytest

from dict_view import DictView
from mailraft.cluster import mapfile
from mailraft.cluster.control.metagroup import fingerprint
from mailraft.cluster.meta import machine, nodes, state
from mailraft.internal.v1 import command_pb2, meta_pb2
from mailraft.node.interfaces import Entry, EntryKind, Proposal, replica_id
from mailraft.node.mailstore import rules
from mailraft.node.mailstore.errors import UnknownFormatError
from mailraft.node.mailstore.overlay import Overlay
from mailraft.v1 import admin_pb2, cluster_pb2, job_pb2
from meta_driver import (
    ACTIVE,
    DRAINED,
    DRAINING,
    LEAVING,
    REMOVED,
    START_MS,
    VOTER,
    Meta,
    first_map,
    node,
    refused,
    request_id,
)

# ---- the first state


def test_the_map_that_all_began_with_is_the_first_state_once() -> None:
    """Nodes without a state, as release 0.1.0 wrote them, are active. A second changes nothing."""
    first = first_map()
    first.nodes[0].state = cluster_pb2.NODE_STATE_UNSPECIFIED
    meta = Meta(first)
    assert [each.state for each in meta.map.nodes] == [ACTIVE] * 4
    assert meta.map.shards == first.shards
    assert meta.map.slots == first.slots
    assert meta.map.meta == first.meta
    rows = dict(meta.views[0].rows)
    assert meta.run(bootstrap=meta_pb2.BootstrapMeta(map=first_map(5))).HasField("done")
    assert meta.views[0].rows == rows


def test_before_that_nothing_is_decided() -> None:
    """There is no cluster to change yet: the caller comes back."""
    meta = Meta()
    assert state.cluster_map(meta.views[0]) is None
    assert refused(meta.admit(node(1))) == "NO_LEADER"
    assert refused(meta.change("concurrent_moves", concurrent_moves=3)) == "NO_LEADER"
    assert refused(meta.begin(rebalance=job_pb2.RebalanceSpec())) == "NO_LEADER"


@pytest.mark.parametrize(
    "payload",
    [
        meta_pb2.MetaBatch(format=2).SerializeToString(),
        meta_pb2.MetaBatch(
            format=1, commands=[meta_pb2.MetaCommand(time_ms=1)]
        ).SerializeToString(),
    ],
)
def test_what_a_later_version_wrote_stops_the_replica(payload: bytes) -> None:
    """It never guesses."""
    with pytest.raises(UnknownFormatError):
        machine.MetaStateMachine().apply(DictView(), Entry(1, 1, EntryKind.COMMAND, payload))


def test_only_commands_that_say_something_are_encoded() -> None:
    """A mistake of the proposer stays with the proposer."""
    with pytest.raises(ValueError, match="says what"):
        machine.MetaStateMachine().encode([Proposal(meta_pb2.MetaCommand())])
    with pytest.raises(TypeError):
        machine.MetaStateMachine().encode([Proposal(command_pb2.Command())])
    assert machine.MetaStateMachine().apply(DictView(), Entry(1, 1, EntryKind.NOOP)).effects == ()


# ---- requests


def test_a_retry_answers_the_same_and_does_nothing() -> None:
    """Also when the state has moved on since."""
    meta = Meta(first_map())
    first = meta.admit(node(5), request_id=request_id())
    meta.set_state(5, DRAINING)
    rows = dict(meta.views[0].rows)
    assert meta.admit(node(5), request_id=request_id()) == first
    assert meta.views[0].rows == rows


def test_a_request_id_is_for_one_request() -> None:
    """Other content under it is refused, as is one that is no UUIDv7, or too old to be known."""
    meta = Meta(first_map())
    meta.admit(node(5), request_id=request_id())
    other = meta_pb2.MetaCommand(
        time_ms=START_MS,
        request_id=request_id(),
        fingerprint=b"other",
        admit_node=meta_pb2.AdmitNode(node=node(6)),
    )
    assert refused(meta.apply(other)[0]) == "REQUEST_ID_REUSED"
    assert refused(meta.admit(node(6), request_id=uuid.UUID(int=4).bytes)) == "BAD_FIELD"
    old = request_id(START_MS - rules.REQUEST_ID_WINDOW_MS - 1)
    assert refused(meta.admit(node(6), request_id=old)) == "REQUEST_ID_TOO_OLD"


def test_a_refusal_is_not_remembered() -> None:
    """It changed nothing, and a retry may find the cause gone."""
    meta = Meta(first_map())
    assert refused(meta.admit(node(5, name="n1"), request_id=request_id())) == "NODE_EXISTS"
    assert refused(meta.admit(node(5), request_id=request_id())) == ""


def test_a_fingerprint_is_of_what_is_asked_for() -> None:
    """Not of the request's id, nor of whether it is only tried."""
    asked = admin_pb2.DrainNodeRequest(node_id=1, request_id=b"1", validate_only=True)
    assert fingerprint(asked) == fingerprint(admin_pb2.DrainNodeRequest(node_id=1))
    assert fingerprint(asked) != fingerprint(admin_pb2.DrainNodeRequest(node_id=2))


def test_a_preview_answers_as_the_command_would_and_changes_nothing() -> None:
    """validate_only: the same code on an overlay that is thrown away."""
    meta = Meta(first_map())
    rows = dict(meta.views[0].rows)
    command = meta_pb2.MetaCommand(
        time_ms=START_MS, request_id=request_id(), admit_node=meta_pb2.AdmitNode(node=node(5))
    )
    preview = machine.run(Overlay(meta.views[0]), command)
    assert preview.node.id == 5
    assert meta.views[0].rows == rows
    assert meta.apply(command) == [preview]


def test_a_caller_may_insist_on_the_epoch_that_it_saw() -> None:
    """if_epoch: else it is refused, and told which is in force."""
    meta = Meta(first_map())
    epoch = meta.map.epoch
    stale = meta.run(if_epoch=epoch + 1, admit_node=meta_pb2.AdmitNode(node=node(5)))
    assert refused(stale) == "EPOCH_MISMATCH"
    assert [(each.key, each.value) for each in stale.refusal.metadata] == [("epoch", str(epoch))]
    assert refused(meta.run(if_epoch=epoch, admit_node=meta_pb2.AdmitNode(node=node(5)))) == ""


def test_commands_of_one_entry_see_each_other() -> None:
    """Each on what the one before it left; a refused one leaves nothing."""
    meta = Meta(first_map())
    replies = meta.apply(
        *(
            meta_pb2.MetaCommand(time_ms=START_MS, admit_node=meta_pb2.AdmitNode(node=told))
            for told in (node(5), node(6, address="n5:1"), node(7))
        )
    )
    assert [refused(each) for each in replies] == ["", "NODE_EXISTS", ""]
    assert [each.node.id for each in replies] == [5, 0, 6]
    assert meta.map.epoch == replies[-1].epoch


# ---- nodes


def test_a_node_gets_a_number_that_nobody_had() -> None:
    """The same name at the same address is the same node; one that left comes back as another."""
    meta = Meta(first_map())
    assert meta.admit(node(5)).node.id == 5
    epoch = meta.map.epoch
    assert meta.admit(node(5)).node.id == 5
    assert meta.map.epoch == epoch
    meta.set_state(5, REMOVED)
    again = meta.admit(node(5))
    assert again.node.id == 6
    assert again.node.state == ACTIVE
    mapfile.check(meta.map)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (node(5, name="n1"), "NODE_EXISTS"),
        (node(5, address="n1:1"), "NODE_EXISTS"),
        (node(5, name=""), "BAD_FIELD"),
        (node(5, name="N5"), "BAD_FIELD"),
        (node(5, name="n" * 64), "BAD_FIELD"),
        (node(5, address="n5"), "BAD_FIELD"),
        (node(5, address="n5:70000"), "BAD_FIELD"),
        (node(5, address="n 5:1"), "BAD_FIELD"),
        (node(5, address="n" * 300 + ":1"), "BAD_FIELD"),
        (node(5, zone="z" * 64), "BAD_FIELD"),
        (node(5, host="h" * 64), "BAD_FIELD"),
        (node(5, weight_milli=nodes.WEIGHT_MAX_MILLI + 1), "BAD_FIELD"),
    ],
    ids=str,
)
def test_a_node_that_the_map_could_not_hold_is_refused(told: cluster_pb2.Node, why: str) -> None:
    """Nothing is given for it."""
    meta = Meta(first_map())
    before = meta.head
    assert refused(meta.admit(told)) == why
    assert meta.head == before


def test_there_are_so_many_nodes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that left do not count."""
    monkeypatch.setattr(nodes, "NODES_MAX", 5)
    meta = Meta(first_map())
    meta.admit(node(5))
    assert refused(meta.admit(node(6))) == "LIMIT_REACHED"
    meta.set_state(5, REMOVED)
    assert refused(meta.admit(node(6))) == ""


def test_a_node_tells_what_it_runs_and_where() -> None:
    """An epoch for what is news. Never the address of another: no process would take the map."""
    meta = Meta(first_map())
    epoch = meta.map.epoch
    assert meta.describe(1, "0.2.0").epoch == epoch + 1
    assert meta.describe(1, "0.2.0").epoch == epoch + 1
    assert meta.describe(1, "0.2.0", "n9:9").node.address == "n9:9"
    assert refused(meta.describe(1, "0.2.0", "n2:1")) == "NODE_EXISTS"
    assert refused(meta.describe(1, "0.2.0", "n2:x")) == "BAD_FIELD"
    assert refused(meta.describe(9, "0.2.0")) == "NODE_NOT_FOUND"
    assert meta.map.epoch == epoch + 2


def test_node_states_lead_where_they_should() -> None:
    """Every pair of states: allowed, or refused with nothing changed."""
    allowed = {
        ACTIVE: {DRAINING, LEAVING, REMOVED},
        DRAINING: {ACTIVE, DRAINED, LEAVING, REMOVED},
        DRAINED: {ACTIVE, DRAINING, LEAVING, REMOVED},
        LEAVING: {ACTIVE, REMOVED},
    }
    ways = {ACTIVE: [], DRAINING: [DRAINING], DRAINED: [DRAINING, DRAINED], LEAVING: [LEAVING]}
    for before, way in ways.items():
        for after in (ACTIVE, DRAINING, DRAINED, LEAVING, REMOVED):
            meta = Meta(first_map())
            meta.admit(node(5))
            for step in way:
                assert refused(meta.set_state(5, step)) == ""
            epoch = meta.map.epoch
            reply = meta.set_state(5, after)
            if after == before:
                assert reply.epoch == epoch
            elif after in allowed[before]:
                assert reply.node.state == after
                assert reply.epoch == epoch + 1
            else:
                assert refused(reply) == "BAD_FIELD"
                assert meta.map.epoch == epoch
    assert (
        refused(Meta(first_map()).set_state(1, cluster_pb2.NODE_STATE_UNSPECIFIED)) == "BAD_FIELD"
    )


def test_a_node_leaves_only_when_nothing_is_on_it_or_on_its_way() -> None:
    """No replica in the map, no open move to it; then its number is gone for good."""
    meta = Meta(first_map())
    assert refused(meta.set_state(meta.on(1)[0], REMOVED)) == "JOB_CONFLICT"
    new = meta.admit(node(5)).node.id
    moving = meta.move(1, meta.on(1)[0], new)
    assert refused(meta.set_state(new, REMOVED)) == "JOB_CONFLICT"
    meta.advance(moving.job.job, job_pb2.JOB_STATE_CANCELLED)
    assert refused(meta.set_state(new, REMOVED)) == ""
    assert refused(meta.set_state(new, ACTIVE)) == "NODE_NOT_FOUND"


# ---- shards


def test_a_newer_configuration_is_recorded_and_an_older_one_is_not() -> None:
    """What is told late changes nothing, nor does what is known."""
    meta = Meta(first_map())
    epoch = meta.map.epoch
    meta.record(1, 5, 1, 2, 3, learners=(4,))
    assert meta.map.epoch == epoch + 1
    for version in (4, 5):
        meta.record(1, version, 1, 2)
        assert meta.on(1) == [1, 2, 3, 4]
    assert meta.map.epoch == epoch + 1
    meta.record(1, 6, 1, 2, 4)
    assert meta.on(1) == [1, 2, 4]
    mapfile.check(meta.map)


def test_a_map_that_nobody_would_take_is_never_made() -> None:
    """Replicas on unknown nodes, two on one, none at all, or under another's number."""
    meta = Meta(first_map())
    before = meta.map
    assert refused(meta.record(1, 9, 1, 2, 77)) == "NODE_NOT_FOUND"  # type: ignore[arg-type]
    assert refused(meta.record(1, 9, 1, 2, 2)) == "BAD_FIELD"  # type: ignore[arg-type]
    assert refused(meta.record(1, 9)) == "BAD_FIELD"  # type: ignore[arg-type]
    assert refused(meta.record(9, 9, 1)) == "SHARD_NOT_FOUND"  # type: ignore[arg-type]
    foreign = cluster_pb2.Shard(id=1, configuration_version=9)
    foreign.replicas.add(replica_id=replica_id(2, 1), node_id=1, role=VOTER)
    reply = meta.run(record_shard=meta_pb2.RecordShard(shard=foreign))
    assert refused(reply) == "BAD_FIELD"
    assert meta.map == before


def test_leader_hints_are_not_kept() -> None:
    """They are of a moment."""
    meta = Meta(first_map())
    told = cluster_pb2.Shard(id=1, configuration_version=9)
    told.leader.node_id = 1
    told.replicas.add(replica_id=replica_id(1, 1), node_id=1, role=VOTER)
    meta.run(record_shard=meta_pb2.RecordShard(shard=told))
    assert not meta.map.shards[0].HasField("leader")
