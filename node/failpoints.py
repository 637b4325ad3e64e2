"""Named places where a test makes a process die, wait or fail. Off unless the environment says so.

    MAILRAFT_FAILPOINTS="snapshot.before_flip=kill;journal.before_sync=sleep:0.5@3"

`@n` means the n-th time only, else every time. An armed place acts; one that is not armed costs a
dictionary lookup and decides nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from typing import Final

VARIABLE: Final = "MAILRAFT_FAILPOINTS"

NAMES: Final = (
    "disk.read",
    "disk.sync",
    "journal.before_sync",
    "journal.after_sync",
    "send.before",
    "send.after",
    "apply.before",
    "apply.after",
    "compaction.before",
    "compaction.after",
    "snapshot.after_burn",
    "snapshot.before_ingest",
    "snapshot.after_ingest",
    "snapshot.before_flip",
    "snapshot.after_flip",
    "snapshot.before_drop",
    "snapshot.after_drop",
)


class FailpointError(OSError):
    """What an armed place raises: an I/O error, as a disk or a socket would."""


@dataclass(slots=True)
class _Action:
    what: str
    seconds: float = 0.0
    on_hit: int = 0  # 0: on every one
    hits: int = 0

    def run(self, name: str) -> None:
        self.hits += 1
        if self.on_hit and self.hits != self.on_hit:
            return
        match self.what:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "sleep":
                time.sleep(self.seconds)
            case _:
                raise FailpointError(errno.EIO, f"Input/output error: failpoint {name}")


_armed: dict[str, _Action] = {}


def hit(name: str) -> None:
    """Pass the place `name`."""
    action = _armed.get(name)
    if action is not None:
        action.run(name)


def arm(specification: str) -> None:
    """Arm exactly what it says, as in VARIABLE. Raises ValueError, before anything is armed."""
    armed = dict(_parse(part) for part in specification.split(";") if part.strip())
    _armed.clear()
    _armed.update(armed)


def _parse(part: str) -> tuple[str, _Action]:
    name, equals, rest = part.strip().partition("=")
    action, _, on_hit = rest.partition("@")
    what, _, seconds = action.partition(":")
    if name not in NAMES:
        raise ValueError(f"{VARIABLE}: {name!r} is no failpoint; there are {', '.join(NAMES)}")
    if not equals or what not in {"kill", "sleep", "error"}:
        raise ValueError(f"{VARIABLE}: {name} is followed by =kill, =sleep:SECONDS or =error")
    return name, _Action(what, float(seconds or 0), int(on_hit or 0))


arm(os.environ.get(VARIABLE, ""))
