"""Bodies that the state machine removed while their entry is still in this replica's log.

An entry is sent to peers and verified with its bodies, so they stay for as long as it does: until
the log is compacted past it, which each replica does when it likes. Until then a row beside the
state remembers them. It is the engine's own, as the shard's record is: no effect names it, and it
goes along with a snapshot, so that no replica is left with bodies that nobody knows of.
"""

from __future__ import annotations

from mailraft.node.engine import keys
from mailraft.node.engine.backend import Backend, Batch
from mailraft.node.engine.groups import GroupState
from mailraft.node.interfaces import DeleteBody


def remove(batch: Batch, state: GroupState, effect: DeleteBody) -> None:
    """Delete a body now, or when its entry leaves the log."""
    index, ordinal = effect.index, effect.ordinal
    if index <= state.birth.base.index:
        batch.delete(keys.BODY, _body(state, index, ordinal))
    else:
        batch.put(keys.STATE, state.state_prefix + keys.dead_body(index, ordinal), b"")


def compact(backend: Backend, batch: Batch, state: GroupState) -> None:
    """Delete what waited for the entries up to the log's new base to go."""
    prefix = state.state_prefix
    start, end = keys.dead_body(0), keys.dead_body(state.birth.base.index + 1)
    for key, _ in backend.scan(keys.STATE, prefix + start, prefix + end):
        index, ordinal = keys.dead_body_of(key)
        batch.delete(keys.BODY, _body(state, index, ordinal))
        batch.delete(keys.STATE, key)


def _body(state: GroupState, index: int, ordinal: int) -> bytes:
    return keys.body(state.group, state.birth.generation, index, ordinal)
