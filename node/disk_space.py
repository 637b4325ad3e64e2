"""How much room this node's disk has, and what it takes while there is little.

Below the reserve a leader refuses what adds mail and goes on with what frees room, or changes what
is there: both need some room themselves, as RocksDB does to free any (docs/decisions/0016). Looked
at once a second and never by apply(), which decides alike on every replica.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

from mailraft.internal.v1 import command_pb2
from mailraft.node.engine.backend import DiskUsage
from mailraft.node.interfaces import GroupId, ReplicaId, node_of
from mailraft.node.shard import Replica
from mailraft.wire import errors

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
# Less free than this share, or this many bytes, is little: there is still time to do something.
LITTLE_RATIO, LITTLE_BYTES = 0.2, 16 * 1024**3
# A full disk has room again once this much of the reserve is free: what one delivery takes, and one
# compaction gives back, must not switch it.
ROOM_AGAIN = 1.25
# What to tell callers while another replica is about to lead; else that of the error.
NEXT_LEADER_MS = 1_000

_ADDS = frozenset(
    {
        "create_account",
        "create_mailbox",
        "deliver",
        "append",
        "undelete_messages",  # its bytes were about to be freed
        "begin_upload",
        "upload_part",
    }
)


@dataclass(frozen=True, slots=True)
class Reserve:
    """What stays free: a share of the disk, and of a large one no more than `bytes_max`."""

    bytes_max: int = 2 * 1024**3
    ratio: float = 0.1

    def of(self, total_bytes: int) -> int:
        return min(self.bytes_max, int(self.ratio * total_bytes))


def nearly_full(usage: DiskUsage) -> bool:
    """Whether an operator is to be told. False where nothing is known of the disk."""
    return usage.free_bytes < min(LITTLE_RATIO * usage.total_bytes, LITTLE_BYTES)


class DiskSpace:
    """full_peers: the other nodes whose disks are full, as their heartbeats tell."""

    def __init__(self, reserve: Reserve, full_peers: Callable[[], Set[int]]) -> None:
        self._reserve, self._full_peers = reserve, full_peers
        self._usage = DiskUsage(0, 0)
        self._warned = False
        self.full = False

    def look(self, usage: DiskUsage) -> None:
        """Take in what the disk is like now."""
        self._usage, reserve_bytes = usage, self._reserve.of(usage.total_bytes)
        full = usage.free_bytes < reserve_bytes * (ROOM_AGAIN if self.full else 1)
        if full and not self.full:
            log.error(
                "the disk is full: %d MiB are free, %d MiB are kept in reserve; this node takes no "
                "new mail as a leader and hands leadership over; free some or enlarge the disk",
                usage.free_bytes >> 20,
                reserve_bytes >> 20,
            )
        elif self.full and not full:
            log.info("the disk has room again: %d MiB are free", usage.free_bytes >> 20)
        self.full = full
        warn = nearly_full(usage)
        if warn and not self._warned:
            log.warning("%.0f %% of the disk are used", 100 * usage.used_ratio)
        self._warned = warn

    def admit(self, command: command_pb2.Command, voters: Sequence[ReplicaId]) -> None:
        """Whether a leader may propose this to these voters.

        Raises DiskFullError if it adds mail, and this disk or those of so many others are full that
        the rest is no majority.
        """
        full_peers = self._full_peers()
        if not (self.full or full_peers) or not _adds(command):
            return
        full = sum(node_of(each) in full_peers for each in voters) + self.full
        majority_has_room = 2 * full < len(voters)
        if self.full or not majority_has_room:
            raise errors.DiskFullError(
                f"{full} of {len(voters)} replicas have a full disk; deletes are taken",
                retry_after_ms=NEXT_LEADER_MS if majority_has_room else None,
            )


async def hand_over_while_full(
    space: DiskSpace,
    usage: Callable[[], DiskUsage],
    replicas: Callable[[], Iterable[Replica]],
    hand_over: Callable[[GroupId], None],
) -> None:
    """Look, and give away what is led here for as long as this disk is full. Until cancelled.

    Nobody takes over whose disk is full too (consensus, heirs): then this node goes on to lead, and
    takes deletes.
    """
    while True:
        space.look(await asyncio.to_thread(usage))
        if space.full:
            for replica in replicas():
                if replica.leadership.leading:
                    hand_over(replica.group)
        await asyncio.sleep(LOOK_EVERY_S)


def _adds(command: command_pb2.Command) -> bool:
    action = command.WhichOneof("action")
    return action in _ADDS or (action == "copy_messages" and command.copy_messages.duplicate)
