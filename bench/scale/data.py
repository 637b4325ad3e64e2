"""What was measured, as docs/scale.json keeps it: the pages follow from it alone."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from bench.scale.measure import ClusterSeen, Cost, Seen, Setting


@dataclass(slots=True)
class Data:
    """load_average: how many processes wanted a core in the minute before it began. mailbox: by
    operation and messages in the mailbox, medians in microseconds.
    """

    cores: int
    python: str
    load_average: float
    seen: list[Seen] = field(default_factory=list)
    clusters: list[ClusterSeen] = field(default_factory=list)
    mailbox: dict[str, dict[int, float]] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Self:
        """Nothing yet, on this machine."""
        return cls(os.cpu_count() or 1, platform.python_version(), os.getloadavg()[0])

    @property
    def settings(self) -> set[Setting]:
        return {each.setting for each in self.seen}

    def of(self, setting: Setting) -> Seen:
        """Raises StopIteration if it was not measured."""
        return next(each for each in self.seen if each.setting == setting)

    def keep(self, found: ClusterSeen) -> None:
        """In place of what was known of a cluster of this shape."""
        known = [each for each in self.clusters if each.shape != found.shape]
        self.clusters = [*known, found]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(_rounded(asdict(self)), indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises OSError, KeyError, TypeError, ValueError for a file that is none."""
        content = json.loads(path.read_text("utf-8"))
        seen = [
            Seen(
                Setting(**each["setting"]),
                Cost(**each["deliver"]),
                Cost(**each["fetch"]),
                Cost(**each["page"]),
            )
            for each in content["seen"]
        ]
        mailbox = {
            name: {int(size): float(took_us) for size, took_us in sizes.items()}
            for name, sizes in content["mailbox"].items()
        }
        clusters = [ClusterSeen(**each) for each in content["clusters"]]
        machine = content["cores"], content["python"], content["load_average"]
        return cls(*machine, seen, clusters, mailbox)


def _rounded(value: Any) -> Any:
    """Four digits that count: the rest is noise, and hard to read."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return value
