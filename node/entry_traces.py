"""Traces that follow an entry to the followers and through their disks.

A leader names the traced commands of an entry in the frame that carries it; a follower makes a span
of what it did with it. Nothing is looked at while nothing is traced, and consensus knows nothing of
it: a trace that gets lost is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.messages import Appended, Outcome
from mailraft.node.interfaces import GroupId
from mailraft.wire import tracing

# Entries that are followed at a time, as leader and as follower; past it the oldest are let go.
ENTRIES_MAX = 1_024
# Of one entry, which may hold commands of 256 callers; and in one frame.
TRACES_PER_ENTRY_MAX = 8
TRACES_PER_FRAME_MAX = 512

_Key = tuple[GroupId, int]
_Value = TypeVar("_Value")


@dataclass(slots=True)
class _Followed:
    parent: str
    received_s: float
    written_s: float = 0.0
    sequence: int = 0
    flushed: bool = False


class EntryTraces:
    """Of one node. All times are on the node's clock."""

    def __init__(self, node: int) -> None:
        self._node = node
        self._proposed: dict[_Key, tuple[str, ...]] = {}  # by token
        self._placed: dict[_Key, tuple[str, ...]] = {}  # by index
        self._followed: dict[_Key, list[_Followed]] = {}

    # ---- a leader's -----------------------------------------------------------------------------

    def proposed(self, group: GroupId, token: int, traces: tuple[str, ...]) -> None:
        _put(self._proposed, (group, token), traces[:TRACES_PER_ENTRY_MAX])

    def attach(
        self, outcomes: Iterable[Outcome], messages: Iterable[tuple[int, raft_pb2.ExchangeRequest]]
    ) -> None:
        """Name the traced entries in the frames that carry them."""
        if self._proposed:
            for outcome in outcomes:
                traces = self._proposed.pop((outcome.group, outcome.token), None)
                if traces is not None and isinstance(outcome, Appended):
                    _put(self._placed, (outcome.group, outcome.index), traces)
        if not self._placed:
            return
        for _, frame in messages:
            for envelope in frame.envelopes:
                for entry in envelope.append_entries.entries:
                    for trace in self._placed.get((envelope.group, entry.index), ()):
                        frame.traces.add(group=envelope.group, index=entry.index, traceparent=trace)

    # ---- a follower's ---------------------------------------------------------------------------

    def received(self, frame: raft_pb2.ExchangeRequest, now_s: float) -> None:
        if not tracing.enabled():
            return
        for trace in frame.traces[:TRACES_PER_FRAME_MAX]:
            followed = self._followed.get((trace.group, trace.index), [])
            known = any(each.parent == trace.traceparent for each in followed)  # sent again
            if not known and len(followed) < TRACES_PER_ENTRY_MAX:
                followed.append(_Followed(trace.traceparent, now_s))
                _put(self._followed, (trace.group, trace.index), followed)

    def written(self, sequence: int, now_s: float) -> None:
        """What was received before this turn is written with it, if it was not a repetition."""
        for each in self._all_followed():
            if not each.sequence:
                each.sequence, each.written_s = sequence, now_s

    def flushed(self, durable: int, now_s: float) -> None:
        for each in self._all_followed():
            if each.sequence and not each.flushed and each.sequence <= durable:
                each.flushed = True
                appended = self._past(each.parent, "follower append", each.received_s, now_s)
                self._past(appended, "follower flush", each.written_s, now_s)

    def applied(self, group: GroupId, index: int, began_s: float, now_s: float) -> None:
        """Of a leader or a follower: nothing more comes of this entry."""
        self._placed.pop((group, index), None)
        for each in self._followed.pop((group, index), ()):
            self._past(each.parent, "follower apply", began_s, now_s)

    def __bool__(self) -> bool:
        """Whether anything is traced now."""
        return bool(self._proposed or self._placed or self._followed)

    def _past(self, parent: str, name: str, began_s: float, now_s: float) -> str:
        return tracing.past(
            parent, name, began_s, now_s, now_s=now_s, attributes={"node": self._node}
        )

    def _all_followed(self) -> Iterable[_Followed]:
        return (each for entry in self._followed.values() for each in entry)


def _put(entries: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    entries[key] = value
    if len(entries) > ENTRIES_MAX:
        del entries[next(iter(entries))]
