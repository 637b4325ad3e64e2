"""The cluster's settings of levels: which are refused, and how every node comes to know them."""

from __future__ import annotations

import pytest

from mailraft.v1 import common_pb2
from meta_driver import Meta, first_map, refused


def test_the_map_tells_every_node() -> None:
    """A change of levels is a new epoch of the map, so all fetch it; others are not."""
    meta = Meta(first_map())
    policy = meta.map.policy
    assert policy.default_consistency == common_pb2.CONSISTENCY_SESSION
    assert policy.default_ack == common_pb2.ACK_LEVEL_QUORUM
    assert not policy.allow_accepted
    epoch = meta.map.epoch
    meta.change("allow_accepted", allow_accepted=True)
    assert meta.map.policy.allow_accepted
    assert meta.map.epoch == epoch + 1
    meta.change("concurrent_moves", concurrent_moves=3)
    assert meta.map.epoch == epoch + 1


@pytest.mark.parametrize(
    ("field", "level", "reason"),
    [
        ("default_ack", common_pb2.ACK_LEVEL_ACCEPTED, "LEVEL_NOT_ALLOWED"),
        ("default_ack", common_pb2.ACK_LEVEL_REPLICAS, "BAD_FIELD"),
        ("default_consistency", common_pb2.CONSISTENCY_BOUNDED, "BAD_FIELD"),
    ],
    ids=["accepted", "replicas", "bounded"],
)
def test_a_default_has_to_make_sense_alone(field: str, level: int, reason: str) -> None:
    """One that is not allowed, or has to be told how many or how old, is none."""
    meta = Meta(first_map())
    before = meta.map
    assert refused(meta.change(field, **{field: level})) == reason
    assert meta.map == before
