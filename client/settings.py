"""What a client is told once: whom to talk to, as whom, and until when."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mailraft.client.options import ReadLevel, WriteLevel
from mailraft.wire.credentials import AnyCredentials, Credentials, Insecure

# A download takes as long as its bytes do; this ends one whose server went silent.
STREAM_DEADLINE_S = 300.0
CLOSED = "this client is closed"

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is left of the arguments of AsyncClient once they are checked."""

    targets: tuple[str, ...]
    credentials: AnyCredentials
    deadline_s: float
    direct: bool
    reads: ReadLevel
    writes: WriteLevel
    zone: str

    @classmethod
    def of(
        cls,
        target: str | Sequence[str],
        certs: PathLike | None,
        name: str,
        insecure: bool,
        deadline_s: float,
        direct: bool,
        reads: ReadLevel | None = None,
        writes: WriteLevel | None = None,
        zone: str = "",
    ) -> Settings:
        """Raises ValueError for what can never work."""
        targets = (target,) if isinstance(target, str) else tuple(target)
        if not targets:
            raise ValueError("at least one target is needed, host:port of a router or node")
        if (certs is None) != insecure:
            raise ValueError("either certs or insecure=True is needed, and not both")
        if deadline_s <= 0:
            raise ValueError("deadline_s is to be above 0")
        identity = Insecure() if certs is None else Credentials(Path(certs), name)
        return cls(targets, identity, deadline_s, direct, reads or {}, writes or {}, zone)
