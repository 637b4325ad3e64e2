"""Writes the samples of the version that is worked on, as serialized by the code of today.

That is the one in pyproject.toml, without its ".dev": what a release wrote must be readable for
ever, and is never written again. Only for types whose sample no earlier version holds already.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools")]

from golden_samples import FOLDER, files_of, hex_of, sample, stored_types, text_of  # noqa: E402
from releases import CHANGELOG, releases  # noqa: E402


def version_to_come() -> str:
    """The version whose samples may still change."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    version = version.partition(".dev")[0]
    if version in {release.version for release in releases(CHANGELOG.read_text("utf-8"))}:
        raise SystemExit(f"{version} is released: name the next version in pyproject.toml")
    return version


def main() -> None:
    """Write what is new or has changed."""
    version = version_to_come()
    earlier = {path.name for path in FOLDER.iterdir() if path.is_dir()} - {version}
    for kind in stored_types():
        message = sample(kind)
        wanted = hex_of(message), text_of(message)
        older = [files_of(name, kind)[0] for name in sorted(earlier)]
        if any(path.exists() and path.read_text() == wanted[0] for path in older):
            continue
        for path, content in zip(files_of(version, kind), wanted, strict=True):
            if path.exists() and path.read_text() == content:
                continue
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
