"""Faults of stock pysyncobj that tests can bring back, to prove that the suite would see them.

Only tests pass anything but NONE to a Host. Numbers are the rows of docs/consensus.md.
"""

from __future__ import annotations

import enum


class Mutant(enum.Flag):
    NONE = 0
    REVEAL_BEFORE_FLUSH = enum.auto()  # row 1
    TRUNCATE_ON_EVERY_APPEND = enum.auto()  # row 2
    NEXT_INDEX_BACKWARDS = enum.auto()  # row 3
    COUNT_STALE_ACKS = enum.auto()  # row 4
    COMMIT_BEFORE_OWN_FLUSH = enum.auto()  # row 5
    COUNT_VOTES_TWICE = enum.auto()  # row 6
    NO_PRE_VOTE = enum.auto()  # row 7
