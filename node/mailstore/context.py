"""What an entry and its command say to every step of apply."""

from __future__ import annotations

from typing import NamedTuple


class Context(NamedTuple):
    """Handed down to whoever needs the time or names new bodies."""

    entry_index: int  # of the entry: new bodies lie under it
    now_ms: int  # the shard's clock
    body_base: int
    body_count: int
    undelete_window_ms: int  # where account and mailbox do not say
