"""One archive that tells those who help what there is and what happened: mailraft debug bundle.

Keys, certificates, mail and the files of the store are never read. With a Redactor nobody outside
can tell who has mail here, or where the machines are.
"""

from __future__ import annotations

import io
import json
import platform
import tarfile
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from mailraft.cluster import settings
from mailraft.cluster.errors import SettingsError
from mailraft.cluster.redaction import Redactor
from mailraft.wire.slow_log import EVENT

# Of each file: the end of a log, and all of its slow calls up to a number.
LOG_LINES_MAX, LINE_CHARS_MAX = 5_000, 16_384
SLOW_LINES_MAX, AUDIT_LINES_MAX = 1_000, 2_000
LIBRARIES = ("grpcio", "protobuf", "rocksdict", "pysyncobj", "zstandard", "uvloop")
# In the folder of one process; a log of another name is that process'.
_OF_THEIR_FOLDERS = frozenset({"node.toml", "router.toml", "audit.jsonl"})
# Settings that name files: where they lie says who runs this.
_FILES = frozenset({"map_file", "certs_folder", "data_dir", "audit_file", "log_key_file"})


@dataclass(slots=True)
class Bundle:
    """Files by their names in the archive. redactor None: everything as it is."""

    redactor: Redactor | None
    files: dict[str, str] = field(default_factory=dict)
    # What could not be had, and why: that tells something, too.
    missing: dict[str, str] = field(default_factory=dict)

    def document(self, name: str, value: Any) -> None:
        """A JSON document."""
        told = value if self.redactor is None else self.redactor.value(value)
        self.files[name] = json.dumps(told, indent=1, ensure_ascii=False) + "\n"

    def lines(self, name: str, lines: Iterable[str], *, audit: bool = False) -> None:
        """A log."""
        if self.redactor is not None:
            lines = self.redactor.audit(lines) if audit else self.redactor.lines(lines)
        self.files[name] = "".join(f"{line}\n" for line in lines)

    def text(self, name: str, text: str) -> None:
        """Anything else."""
        self.files[name] = text if self.redactor is None else self.redactor.text(text)

    def write(self, path: Path) -> int:
        """The archive, for its owner alone; its bytes. Raises OSError; FileExistsError too."""
        folder = path.name.removesuffix(".tar.gz")
        self.document("missing.json", self.missing)
        with path.open("xb") as file:
            path.chmod(0o600)
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, text in sorted(self.files.items()):
                    content = text.encode("utf-8", "replace")
                    entry = tarfile.TarInfo(f"{folder}/{name}")
                    entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
                    archive.addfile(entry, io.BytesIO(content))
        return path.stat().st_size


def versions() -> dict[str, str]:
    """Of this command and what it stands on."""
    found = {"mailraft": metadata.version("mailraft"), "python": platform.python_version()}
    found |= {"system": f"{platform.system()} {platform.release()} {platform.machine()}"}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def configuration(file: Path, *, redacted: bool) -> dict[str, object]:
    """Every setting of a process, as it would have it. Raises SettingsError."""
    loaded = settings.load(settings.kind_of(file), file)
    return {
        each.name: {
            "value": "a path" if redacted and each.value and each.name in _FILES else each.value,
            "from": each.origin,
        }
        for each in settings.effective(loaded, file)
    }


def audit_file_of(file: Path) -> Path | None:
    """Where a process with these settings writes its audit log. Raises SettingsError."""
    loaded = settings.load(settings.kind_of(file), file)
    if loaded.audit_file is not None:
        return loaded.audit_file
    return loaded.data_dir / "audit.jsonl" if isinstance(loaded, settings.NodeSettings) else None


def name_of(file: Path) -> str:
    """What a file is called in the archive: node-1 and n1 are names of processes."""
    if file.name in _OF_THEIR_FOLDERS:
        return file.absolute().parent.name
    return file.name.partition(".")[0]


def add_configurations(bundle: Bundle, files: Sequence[Path]) -> None:
    for file in files:
        name = f"configuration/{name_of(file)}.json"
        try:
            bundle.document(name, configuration(file, redacted=bundle.redactor is not None))
        except SettingsError as error:
            bundle.missing[name] = error.message


def add_logs(bundle: Bundle, files: Sequence[Path]) -> None:
    """The end of each, and its slow calls."""
    for file in files:
        name, slow = f"logs/{name_of(file)}.log", deque[str](maxlen=SLOW_LINES_MAX)
        latest = deque[str](maxlen=LOG_LINES_MAX)
        try:
            with file.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    latest.append(line.rstrip("\n")[:LINE_CHARS_MAX])
                    if EVENT in line:
                        slow.append(latest[-1])
        except OSError as error:
            bundle.missing[name] = str(error.strerror)
            continue
        bundle.lines(name, latest)
        if slow:
            bundle.lines(f"slow-log/{name_of(file)}.log", slow)


def add_audits(bundle: Bundle, files: Sequence[Path]) -> None:
    for file in files:
        name = f"audit/{name_of(file)}.jsonl"
        try:
            with file.open(encoding="utf-8", errors="replace") as lines:
                latest = deque((each.rstrip("\n") for each in lines), maxlen=AUDIT_LINES_MAX)
        except FileNotFoundError:
            continue  # nothing was audited there yet
        except OSError as error:
            bundle.missing[name] = str(error.strerror)
            continue
        bundle.lines(name, latest, audit=True)


def add_metrics(bundle: Bundle, pages: Mapping[str, str | None]) -> None:
    """By the names of processes; None: it did not answer."""
    for process, page in pages.items():
        name = f"metrics/{process}.txt"
        if page is None:
            bundle.missing[name] = "no answer"
        else:
            bundle.text(name, page)
