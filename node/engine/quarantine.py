"""A damaged store is moved aside, never deleted before what it held is whole again elsewhere.

FOLDER/damaged          what was found: the next start moves the store aside
FOLDER/quarantine/...   the store as it was found, and why (`damaged`), until the repair is complete

At most one is kept. Damage to a store that is only being filled again says more of its disk than of
its bytes: that is for an operator.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mailraft.node.engine.errors import CorruptionError
from mailraft.node.engine.watermark import sync_path

DAMAGED_FILE: Final = "damaged"
QUARANTINE_FOLDER: Final = "quarantine"
GONE_FOLDER: Final = "quarantine.gone"  # being removed
REASON_BYTES_MAX: Final = 4096


def mark(folder: Path, reason: str) -> None:
    """Have the next start move the store aside; on disk when this returns. The first reason stays.

    Raises OSError: the disk takes not even that, and the next start will find the damage itself.
    """
    if (folder / DAMAGED_FILE).exists():
        return
    fresh = folder / f"{DAMAGED_FILE}.new"
    with fresh.open("w", encoding="utf-8") as file:
        file.write(reason[:REASON_BYTES_MAX] + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / DAMAGED_FILE)
    sync_path(folder)


def marked(folder: Path) -> str | None:
    """Why the store in the folder is to be moved aside; None: it is not."""
    return _read(folder / DAMAGED_FILE)


def kept(folder: Path) -> str | None:
    """Why a store was moved aside whose repair is not complete; None: there is none."""
    return _read(folder / QUARANTINE_FOLDER / DAMAGED_FILE)


def set_aside(folder: Path, names: tuple[str, ...]) -> None:
    """Move these of the folder, which was marked, into its quarantine: all of them, also when it is
    cut off and called again. Raises CorruptionError when another is kept there, OSError.
    """
    kept_folder = folder / QUARANTINE_FOLDER
    before = kept(folder)
    if before is not None:
        raise CorruptionError(
            f"{folder} is damaged ({marked(folder)}), and was before ({before}): it was not filled "
            f"again from its peers yet. Replace the disk, or move {kept_folder} away to try again"
        )
    kept_folder.mkdir(mode=0o700, exist_ok=True)
    for name in names:
        if (folder / name).exists():
            (folder / name).replace(kept_folder / name)
    sync_path(kept_folder)
    # Last: with it the move is complete.
    (folder / DAMAGED_FILE).replace(kept_folder / DAMAGED_FILE)
    sync_path(kept_folder)
    sync_path(folder)


def keep_copy(folder: Path, reason: str, copy: Callable[[Path], None]) -> None:
    """Have `copy` put what is there into the quarantine, before a part of it is given up. Raises
    what that raises, OSError.
    """
    assert kept(folder) is None
    kept_folder = folder / QUARANTINE_FOLDER
    shutil.rmtree(kept_folder, ignore_errors=True)  # a try that was cut off
    kept_folder.mkdir(mode=0o700)
    copy(kept_folder)
    file = kept_folder / DAMAGED_FILE
    file.write_text(reason[:REASON_BYTES_MAX] + "\n", encoding="utf-8")
    for path in (file, kept_folder, folder):
        sync_path(path)


def drop(folder: Path) -> None:
    """What was set aside is whole again: remove it. Blocks on the disk. Raises OSError."""
    gone = folder / GONE_FOLDER
    shutil.rmtree(gone, ignore_errors=True)
    (folder / QUARANTINE_FOLDER).replace(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
