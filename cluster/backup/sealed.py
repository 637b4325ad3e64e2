"""Every file of a backup: a line that says what it is and proves the rest. Pure."""

from __future__ import annotations

import enum
import hashlib

from mailraft.cluster.errors import ClusterError

FORMAT = 1
_MAGIC = b"mailraft-backup"
_HEAD_MAX = 256


class Kind(enum.StrEnum):
    """What a file holds."""

    MANIFEST = "manifest"
    STATE = "state"
    BODIES = "bodies"
    SEGMENT = "segment"
    HEAD = "head"


class DamagedBackupError(ClusterError):
    """A file of a backup is not what was written, or is missing."""

    reason = "BACKUP_DAMAGED"


class NewerBackupError(ClusterError):
    """A later release wrote it."""

    reason = "BACKUP_TOO_NEW"


def seal(kind: Kind, data: bytes) -> bytes:
    """The file that holds `data`."""
    return _line(kind, data) + data


def unseal(kind: Kind, name: str, sealed: bytes) -> bytes:
    """What a file holds, proven. Raises DamagedBackupError, NewerBackupError."""
    end = sealed.find(b"\n", 0, _HEAD_MAX) + 1
    data = sealed[end:]
    if end and sealed[:end] == _line(kind, data):
        return data
    words = sealed[:end].split()
    form = words[1].decode("ascii", "replace") if len(words) == 4 else ""
    if words[:1] == [_MAGIC] and form.isdecimal() and FORMAT < int(form) < 100:
        raise NewerBackupError(
            f"{name} has format {form}, this release knows {FORMAT}", "use the release that made it"
        )
    raise DamagedBackupError(f"{name} is damaged", "restore it from a copy of the store")


def _line(kind: Kind, data: bytes) -> bytes:
    digest = hashlib.sha256(data).hexdigest()
    return b"%s %d %s %s\n" % (_MAGIC, FORMAT, kind.value.encode(), digest.encode())
