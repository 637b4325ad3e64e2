"""Data of every release can be read: the bytes in this folder, to the values beside them.

When a test here fails: tests/golden/make.py.
"""

import subprocess
from pathlib import Path

import pytest
from google.protobuf.message import Message

from golden_samples import FOLDER, covers, sample, stored_types, text_of
from releases import CHANGELOG, Release, releases

TYPES = {kind.DESCRIPTOR.name: kind for kind in stored_types()}
ROOT = FOLDER.parents[1]
FILES = sorted(FOLDER.glob("*/*.hex"))


def read(kind: type[Message], name: str) -> list[Message]:
    """The samples of a type, of every release that has one."""
    samples = [path.read_text() for path in FILES if path.stem == name]
    return [kind.FromString(bytes.fromhex(text)) for text in samples]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_a_release_wrote_reads_as_it_was_meant(path: Path) -> None:
    """Today's code reads every sample of every release to the values it had then."""
    message = TYPES[path.stem].FromString(bytes.fromhex(path.read_text()))
    assert text_of(message) == path.with_suffix(".txt").read_text()


@pytest.mark.parametrize("name", sorted(TYPES))
def test_every_stored_type_has_a_sample(name: str) -> None:
    """No record or command, and no field of one, without bytes that hold later versions to it."""
    kind = TYPES[name]
    covered = {field for message in read(kind, name) for field in covers(message)}
    assert covered == covers(sample(kind)), "run tests/golden/make.py"
    assert read(kind, name), "run tests/golden/make.py"


def test_no_stored_type_has_a_map() -> None:
    """A map serializes in no defined order: replicas would differ in bytes."""
    for kind in stored_types():
        for field in kind.DESCRIPTOR.fields:
            nested = field.message_type
            assert nested is None or not nested.GetOptions().map_entry, field.full_name


@pytest.mark.parametrize(
    "release", releases(CHANGELOG.read_text("utf-8")), ids=lambda it: it.version
)
def test_what_a_release_wrote_is_never_written_again(release: Release) -> None:
    """Its folder is as it was in the commit of the release."""
    if release.commit is None:
        pytest.skip("its commit is recorded with the next one")
    folder = f"tests/golden/{release.version}"
    command = ("git", "diff", "--name-only", release.commit, "--", folder)
    changed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if changed.returncode != 0:
        pytest.skip(f"no history to compare with: {changed.stderr.strip()}")
    assert changed.stdout == ""
