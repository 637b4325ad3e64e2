"""What each write does to the group it is for, and to the rows."""

from __future__ import annotations

from typing import assert_never

from mailraft.node import failpoints
from mailraft.node.engine import dead_bodies, keys, records
from mailraft.node.engine.backend import Backend, Batch
from mailraft.node.engine.generations import Generations
from mailraft.node.engine.groups import GroupState
from mailraft.node.interfaces import (
    AppendEntries,
    ApplyWrite,
    CompactLog,
    Delete,
    DeleteBody,
    DeleteRange,
    EndAmnesia,
    InstallSnapshot,
    Put,
    SaveHardState,
    Succeed,
    TruncateLog,
    Write,
)


def carry_out(
    backend: Backend, generations: Generations, batch: Batch, state: GroupState, write: Write
) -> None:
    """Check a write against the group and add it to the batch. Raises InvalidWriteError."""
    match write:
        case AppendEntries():
            state.append(write)
            _append(batch, state, write)
        case TruncateLog():
            state.truncate(write)
            _truncate(batch, state, write)
        case SaveHardState():
            state.save(write)
            row = records.encode_hard_state(write.hard_state)
            batch.put(keys.META, keys.hard_state(write.group), row)
        case ApplyWrite():
            state.apply(write)
            _apply(batch, state, write)
        case CompactLog():
            failpoints.hit("compaction.before")
            first = state.birth.base.index
            state.compact(write)
            _compact(batch, state, first)
            dead_bodies.compact(backend, batch, state)
        case InstallSnapshot():
            failpoints.hit("snapshot.before_flip")
            state.install(write, generations.applied(write.group, write.generation))
            _forget_log(batch, state)
            dead_bodies.compact(backend, batch, state)
        case EndAmnesia():
            state.end_amnesia()
            put_group(batch, state)
        case Succeed():
            state.succeed(write)
            put_group(batch, state)
        case _:
            assert_never(write)


def put_group(batch: Batch, state: GroupState) -> None:
    batch.put(keys.META, keys.group_record(state.group), records.encode_group(state.birth))


def _append(batch: Batch, state: GroupState, write: AppendEntries) -> None:
    group, generation = state.group, state.birth.generation
    put = batch.into(keys.BODY)
    for entry in write.entries:
        batch.put(keys.LOG, keys.log_entry(group, entry.index), records.encode_entry(entry))
        for ordinal, body in enumerate(entry.bodies):
            put(keys.body(group, generation, entry.index, ordinal), body)


def _truncate(batch: Batch, state: GroupState, write: TruncateLog) -> None:
    """Up to the end of the group, whatever is there. Later puts of the same batch survive."""
    group, generation = state.group, state.birth.generation
    batch.delete_range(
        keys.LOG,
        keys.log_entry(group, write.from_index),
        keys.log_entry(group, keys.INDEX_END),
    )
    batch.delete_range(
        keys.BODY,
        keys.body(group, generation, write.from_index),
        keys.body(group, generation, keys.INDEX_END),
    )


def _compact(batch: Batch, state: GroupState, first_index: int) -> None:
    """The rows of entries that left the log. Their bodies stay where state finds them, but for
    those that it has removed (dead_bodies).
    """
    base_index = state.birth.base.index
    batch.delete_range(
        keys.LOG,
        keys.log_entry(state.group, first_index),
        keys.log_entry(state.group, base_index + 1),
    )
    put_group(batch, state)


def _forget_log(batch: Batch, state: GroupState) -> None:
    group = state.group
    batch.delete_range(keys.LOG, keys.log_entry(group, 0), keys.log_entry(group, keys.INDEX_END))
    put_group(batch, state)


def _apply(batch: Batch, state: GroupState, write: ApplyWrite) -> None:
    prefix, put = state.state_prefix, batch.into(keys.STATE)
    for effect in write.effects:
        if type(effect) is Put:  # nearly all of them
            put(prefix + effect.key, effect.value)
            continue
        match effect:
            case Put():
                raise AssertionError("no class is below Put")
            case Delete(key):
                batch.delete(keys.STATE, prefix + key)
            case DeleteRange(start, end):
                batch.delete_range(keys.STATE, prefix + start, prefix + end)
            case DeleteBody():
                dead_bodies.remove(batch, state, effect)
            case _:
                assert_never(effect)
    # Last, so that no effect can cover it.
    batch.put(keys.STATE, prefix + keys.SHARD_RECORD, records.encode_applied(state.applied))
