from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lock_entries
import releases
from releases import PENDING, Release

OLD = "<!-- release 0.1.0 commit: " + "a" * 40 + " -->"
NEW = f"<!-- release 0.2.0 commit: {PENDING} -->"


def test_a_release_is_known_once_its_commit_is_entered() -> None:
    """A release made but not yet entered is not compared with: the one before it is."""
    changelog = f"# Changelog\n\n## [0.2.0]\n\n{NEW}\n\n## [0.1.0]\n\n{OLD}\n"
    assert releases.releases(changelog) == [Release("0.2.0", None), Release("0.1.0", "a" * 40)]
    assert releases.last_released(changelog) == Release("0.1.0", "a" * 40)
    assert releases.last_released(NEW) is None


def test_a_short_hash_is_refused() -> None:
    """A mark that names no full commit is an error, not a release without one."""
    with pytest.raises(ValueError, match=r"0\.1\.0"):
        releases.releases("<!-- release 0.1.0 commit: abc123 -->")


def test_the_real_changelog_is_read() -> None:
    """The first release stays known for ever."""
    assert releases.releases(releases.CHANGELOG.read_text("utf-8"))[-1].version == "0.1.0"


def test_lock_entries_keep_their_hashes() -> None:
    """What is installed before the rest is checked against the same hashes."""
    wheel = "wheel==2 \\\n    --hash=sha256:11 \\\n    --hash=sha256:22\n"
    lock = f"a==1 \\\n    --hash=sha256:00\n    # via b\n{wheel}z==3\n"
    assert lock_entries.entries(lock, ["wheel"]) == wheel
    with pytest.raises(KeyError):
        lock_entries.entries(lock, ["setuptools"])


def test_the_real_lock_pins_the_build_tools() -> None:
    """`make venv` builds with exact versions."""
    lock = lock_entries.LOCK.read_text("utf-8")
    assert lock_entries.entries(lock, ["setuptools", "wheel"]).count("==") == 2


def test_what_an_install_needs_is_selected() -> None:
    """With extras come theirs, and what those need, but nothing of the tests."""
    pyproject = """
[project]
name = "us"
dependencies = ["base>=1,<2"]
[project.optional-dependencies]
router = ["serve[x]>=1; sys_platform != 'win32'"]
node = ["us[router]", "store==3"]
test = ["us[node]", "check"]
"""
    lock = "".join(
        f"{name}==1 \\\n    --hash=sha256:00\n{via}"
        for name, via in [
            ("base", "    # via us (pyproject.toml)\n"),
            ("check", "    # via us (pyproject.toml)\n"),
            ("deep", "    # via\n    #   check\n    #   low\n"),
            ("low", "    # via serve\n"),
            ("serve", "    # via us (pyproject.toml)\n"),
            ("store", ""),
            ("tests-only", "    # via check\n"),
        ]
    )
    assert lock_entries.needed(lock, pyproject, ["router"]) == ["base", "deep", "low", "serve"]
    assert "store" in lock_entries.needed(lock, pyproject, ["node"])
    assert "via" not in lock_entries.entries(lock, ["deep", "low"])


def test_the_real_install_is_complete() -> None:
    """What a node's packages say that they need is among what deploy/install.sh installs."""
    lock, pyproject = (
        path.read_text("utf-8") for path in (lock_entries.LOCK, lock_entries.PYPROJECT)
    )
    names = lock_entries.needed(lock, pyproject, ["node", "cli"])
    assert not {"pytest", "mypy", "locust"} & set(names)
    for name in names:
        try:
            requirements = [Requirement(each) for each in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # of another platform
        for each in requirements:
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                assert canonicalize_name(each.name) in names, f"{name} needs {each}"
