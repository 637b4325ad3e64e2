"""Faults of stock pysyncobj that tests can bring back, to prove that the suite would see them.

Only tests pass anything but NONE to a Host. Each name stands with its row of docs/consensus.md.
"""

from __future__ import annotations

import enum


class Mutant(enum.Enum):
    """What is broken on purpose: one thing at a time, so that `is` finds out, at no cost."""

    NONE = 0
    REVEAL_BEFORE_FLUSH = enum.auto()
    TRUNCATE_ON_EVERY_APPEND = enum.auto()
    NEXT_INDEX_BACKWARDS = enum.auto()
    COUNT_STALE_ACKS = enum.auto()
    COMMIT_BEFORE_OWN_FLUSH = enum.auto()
    COUNT_VOTES_TWICE = enum.auto()
    NO_PRE_VOTE = enum.auto()
    IGNORE_LOWER_TERMS = enum.auto()
    READ_WITHOUT_ROUND = enum.auto()
    READ_BEFORE_OWN_COMMIT = enum.auto()
    LONER_ELECTS_ITSELF = enum.auto()
    TWO_CHANGES_AT_ONCE = enum.auto()
    KEEP_TRUNCATED_CONFIGURATION = enum.auto()
    CONFIGURATION_OF_BIRTH = enum.auto()
    COUNT_LEARNERS = enum.auto()
    VOTE_AFTER_AMNESIA = enum.auto()
    REWRITE_LOG_IN_PLACE = enum.auto()
    INSTALL_OVER_LOG = enum.auto()

    @property
    def row(self) -> int:
        """Of docs/consensus.md."""
        return _ROWS[self]


_ROWS = {
    Mutant.REVEAL_BEFORE_FLUSH: 1,
    Mutant.TRUNCATE_ON_EVERY_APPEND: 2,
    Mutant.NEXT_INDEX_BACKWARDS: 3,
    Mutant.COUNT_STALE_ACKS: 4,
    Mutant.COMMIT_BEFORE_OWN_FLUSH: 5,
    Mutant.COUNT_VOTES_TWICE: 6,
    Mutant.NO_PRE_VOTE: 7,
    Mutant.IGNORE_LOWER_TERMS: 7,
    Mutant.READ_WITHOUT_ROUND: 9,
    Mutant.READ_BEFORE_OWN_COMMIT: 9,
    Mutant.LONER_ELECTS_ITSELF: 11,
    Mutant.TWO_CHANGES_AT_ONCE: 11,
    Mutant.KEEP_TRUNCATED_CONFIGURATION: 11,
    Mutant.CONFIGURATION_OF_BIRTH: 11,
    Mutant.COUNT_LEARNERS: 11,
    Mutant.VOTE_AFTER_AMNESIA: 12,
    Mutant.REWRITE_LOG_IN_PLACE: 14,
    Mutant.INSTALL_OVER_LOG: 16,
}

FAULTS = tuple(_ROWS)
