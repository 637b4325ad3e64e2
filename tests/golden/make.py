"""Writes the samples of the version in pyproject.toml, as serialized by the code of today.

Only for types whose sample no earlier version holds already. Refuses to change what a release
wrote: that must be readable for ever, so a change of a record needs a new version.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools")]

from golden_samples import FOLDER, files_of, hex_of, sample, stored_types, text_of  # noqa: E402
from releases import CHANGELOG, releases  # noqa: E402


def main() -> int:
    """0 when every type has a sample of today; 1 when that would change a release."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = CHANGELOG.read_text("utf-8")
    released = version in {release.version for release in releases(changelog) if release.commit}
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
            if released:
                print(f"{version} is released, and {path.name} would change: raise the version")
                return 1
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
            print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
