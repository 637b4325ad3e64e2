"""What waits for the disk is of a replica that is still there."""

from __future__ import annotations

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.held import Held


def test_what_a_replica_would_have_acknowledged_goes_with_it() -> None:
    """One that begins again has the same id and an empty log: what it held before may not be told
    of as durable, once the disk is done. Its neighbours' messages leave in their order.
    """
    held = Held()
    for sequence, group in enumerate((7, 8, 7, 8, 9), 1):
        held.put(raft_pb2.Envelope(group=group, term=sequence), sequence)
    held.drop(8)
    assert [(each.group, each.term) for each in held.take(3)] == [(7, 1), (7, 3)]
    assert [(each.group, each.term) for each in held.take(9)] == [(9, 5)]
    held.drop(7)
    assert held.take(9) == []
