"""What a run is asked for, and what it has found so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.compare.work import Slice

# Samples by row and peer.
Found = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything: of a whole run, or of a quick one."""

    rounds: int = 3
    slice_s: float = 5.0
    large_mailbox: int = 10_000
    device_rounds: int = 2
    device_mails: int = 40_000
    calls: int = 400  # of the router's row
    failovers: int = 20
    stored_bytes: int = 1_000_000_000
    stored_messages: int = 1_000_000
    restarts: int = 3


QUICK = Scale(
    rounds=1,
    slice_s=2.0,
    large_mailbox=1_000,
    device_rounds=1,
    device_mails=6_000,
    calls=100,
    failovers=3,
    stored_bytes=30_000_000,
    stored_messages=20_000,
    restarts=1,
)


@dataclass(slots=True)
class Results:
    """What was measured so far. slices: by work and peer; peers: what ran, by its name; failed:
    rows that could not be measured, and why.
    """

    scale: Scale
    peers: dict[str, str] = field(default_factory=dict)
    samples: Found = field(default_factory=dict)
    slices: dict[str, dict[str, list[Slice]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    took_s: float = 0.0
