"""Reads of the freshest among n replicas, which need no leader: what may be said of them. Pure.

`covers` proves that a read shows everything that was acknowledged at QUORUM before it began:

1. An entry that was acknowledged was on the disks of a majority of the voters of the configuration
   in force at its leader (Raft section 5.3), and a committed entry never leaves a log (5.4).
2. The n replicas are a majority of the voters of one configuration, the newest in the log of each.
   Configurations change by one voter at a time, each begun when the one before is committed and the
   leader has committed in its own term (thesis section 4.1 and its erratum): the majorities of two
   neighbours meet, and a configuration further on would be in the log of one of the n. So one of
   the n holds the entry.
3. Each position was told after the read began. So its last log index is at or above that entry's,
   and the highest of the n is, too.
4. What is applied is a prefix of what is committed. Where it reaches the highest last index, it
   reaches the entry.

A replica that may have forgotten what it acknowledged (docs/consensus.md, amnesia) counts in no
majority. Nothing is proven of reads that fall short of this: an election leaves entries at the end
of logs whose fate nobody knows, and they are not waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mailraft.node.interfaces import ReplicaId


@dataclass(frozen=True, slots=True)
class Position:
    """How far a replica was at one moment."""

    replica: ReplicaId
    applied_index: int
    last_index: int  # where its log ends, committed or not
    configuration_version: int  # of the newest configuration in that log
    voters: tuple[ReplicaId, ...]
    amnesic: bool = False


def freshest(positions: Sequence[Position]) -> Position:
    """The one that has applied most."""
    return max(positions, key=lambda each: each.applied_index)


def covers(positions: Sequence[Position], index: int) -> bool:
    """Whether a state that is applied up to `index` shows everything acknowledged at QUORUM before
    the first of these positions was asked for.
    """
    if len({(each.configuration_version, each.voters) for each in positions}) != 1:
        return False
    voters = positions[0].voters
    counted = {each.replica for each in positions if each.replica in voters and not each.amnesic}
    majority = 2 * len(counted) > len(voters)
    return majority and index >= max(each.last_index for each in positions)
