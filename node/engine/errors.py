"""Why the engine refuses or gives up: one class, one reason. Pure.

A DiskError, CorruptionError or LostWritesError is never tried again on the same handle: the
runtime ends the process, and the replicas concerned step aside. LogCorruptError (damage in one
group's log) is in mailraft.node.interfaces, since consensus catches it.
"""

from __future__ import annotations


class EngineError(Exception):
    """Anything that the engine raises on purpose."""


class DiskError(EngineError):
    """A write or a flush failed. What was written since the last flush may or may not be there."""


class DiskFullError(DiskError):
    """No space left on the disk. RocksDB latches this: only a new process can write again."""


class CorruptionError(EngineError):
    """Stored bytes are not what was written."""


class FileDamagedError(CorruptionError):
    """A file of the store is damaged, or cannot be read: whatever lies in the store is suspect."""


class LostWritesError(EngineError):
    """The folder holds less than what was durable once: nothing in it may vote or serve."""


class UnknownFormatError(EngineError):
    """A record was written by a release that this one does not know."""


class StoreLockedError(EngineError):
    """Another process has the folder open."""


class StoreClosedError(EngineError):
    """The store was closed, or its simulated machine has crashed since."""


class WrongClusterError(EngineError):
    """The folder belongs to another cluster."""


class WrongNodeError(EngineError):
    """The folder belongs to another node of this cluster."""


class UnknownGroupError(EngineError):
    """No replica of this group lives here."""


class GroupExistsError(EngineError):
    """Another replica of the group, or the same one with another birth, lives here already."""


class InvalidWriteError(EngineError):
    """A write would break the log or the state (a gap, a falling term, an index applied twice).

    A bug of the caller. Nothing of its batch was written.
    """
