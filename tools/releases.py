"""Which commit each release was made from, as CHANGELOG.md records it.

A release's section holds one line that machines read:

    <!-- release 0.1.0 commit: 0123456789abcdef0123456789abcdef01234567 -->

A commit cannot name itself, so the line says "(entered by the next commit)" until then.
Run it to list `version commit`, newest first.
"""

import re
from dataclasses import dataclass
from pathlib import Path

CHANGELOG = Path(__file__).parent.parent / "CHANGELOG.md"

_MARK = re.compile(r"^<!-- release (?P<version>\S+) commit: (?P<commit>.+?) -->$", re.MULTILINE)
_COMMIT = re.compile(r"[0-9a-f]{40}")
PENDING = "(entered by the next commit)"


@dataclass(frozen=True)
class Release:
    """A version, and the commit it was made from once that is known."""

    version: str
    commit: str | None


def releases(changelog: str) -> list[Release]:
    """Every release mark, in the order of the file: newest first.

    ValueError when a mark holds neither a full commit hash nor the pending text.
    """
    found = []
    for mark in _MARK.finditer(changelog):
        commit = mark["commit"]
        if commit != PENDING and not _COMMIT.fullmatch(commit):
            raise ValueError(f"release {mark['version']}: {commit!r} is no full commit hash")
        found.append(Release(mark["version"], None if commit == PENDING else commit))
    return found


def last_released(changelog: str) -> Release | None:
    """The newest release whose commit is recorded."""
    return next((release for release in releases(changelog) if release.commit), None)


if __name__ == "__main__":
    for release in releases(CHANGELOG.read_text("utf-8")):
        print(release.version, release.commit or PENDING)
