"""Whether replicas of a shard agree, told from the digests of what they have applied. Pure.

A digest is chained: it covers every effect since the shard was born. So one index that replicas
share is enough, and a replica that differs there was right or wrong at every one before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mailraft.node.interfaces import ReplicaId

Digests = Sequence[tuple[int, bytes]]  # applied index, digest


@dataclass(frozen=True, slots=True)
class Verdict:
    """On those replicas that were compared: `agreeing` and `differing`."""

    index: int
    agreeing: frozenset[ReplicaId]
    differing: frozenset[ReplicaId]
    # A majority of the voters agree. Else nobody can tell who is right: those differ that are not
    # as the leader is, or all where the leader is not compared.
    certain: bool


def compare(
    told: Mapping[ReplicaId, Digests], *, voters: Collection[ReplicaId], leader: ReplicaId = 0
) -> Verdict | None:
    """At the highest index among those that most of them tell of; None where no two share one."""
    at: dict[int, dict[ReplicaId, bytes]] = {}
    for replica in sorted(told):
        for index, digest in told[replica]:
            at.setdefault(index, {})[replica] = digest
    index = max(at, key=lambda each: (len(at[each]), each), default=0)
    found = at.get(index, {})
    if len(found) < 2:
        return None
    votes = Counter(digest for replica, digest in found.items() if replica in voters)
    right, count = votes.most_common(1)[0] if votes else (b"", 0)
    certain = count > len(voters) // 2
    if not certain and len(set(found.values())) > 1:
        right = found.get(leader, b"")
    agreeing = frozenset(replica for replica, digest in found.items() if digest == right)
    return Verdict(index, agreeing, frozenset(found) - agreeing, certain)
