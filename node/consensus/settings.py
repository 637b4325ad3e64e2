"""Times and sizes of consensus. Units last in names."""

from __future__ import annotations

from dataclasses import dataclass, field

from mailraft.node.consensus.compaction import CompactionLimits


@dataclass(frozen=True, slots=True)
class Settings:
    """Raft section 5.6: broadcast time << election timeout << time between failures."""

    heartbeat_s: float = 0.1
    # To a peer on which nothing is led: it tells clocks and full disks, and nobody's patience.
    idle_heartbeat_s: float = 1.0
    election_timeout_min_s: float = 0.4
    election_timeout_max_s: float = 0.8
    # A follower's patience once the stream to its leader's node broke: a leader that lives is heard
    # within two heartbeats; the rest is chance, so that not two followers campaign at once.
    leader_lost_min_s: float = 0.2
    leader_lost_max_s: float = 0.4
    # What of it arrives within this time was on its way before the stream broke.
    in_flight_s: float = 0.05
    tick_s: float = 0.05
    # A commit index goes with the next entry; alone only when none has come for so long. A call
    # that comes now and then costs half the messages so; a reader that waits for it asks.
    commit_notice_s: float = 0.01
    # A read asks as many voters as make a majority, those first that answered first lately; all
    # the others too if that takes longer than this.
    read_patience_s: float = 0.02
    # A write that is not on disk after this long: the disk hangs, and must not keep a leader.
    disk_hung_s: float = 1.0

    # Row 13: what may be on its way to one peer of one group, and what one message carries.
    send_window_bytes: int = 4 * 1024 * 1024
    message_bytes: int = 1024 * 1024
    # What is handed on to be applied at a time.
    apply_bytes: int = 4 * 1024 * 1024
    # Row 15: how long the log may grow.
    compaction: CompactionLimits = field(default_factory=CompactionLimits)
