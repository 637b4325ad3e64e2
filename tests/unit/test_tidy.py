"""Style is a test: the tree obeys the rules of tests/support/tidy.py, and each rule can fail."""

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator

import pytest

import tidy
from tidy import ROOT, Module

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES: list[str] = PYPROJECT["tool"]["setuptools"]["packages"]

Check = Callable[[Iterable[Module]], Iterator[str]]


def check_packages(all_modules: Iterable[Module]) -> Iterator[str]:
    """The packages that are really listed are the ones there are."""
    return tidy.unlisted_packages(all_modules, PACKAGES)


@pytest.mark.parametrize(
    "check",
    [
        tidy.long_files,
        tidy.long_functions,
        tidy.banned_names,
        tidy.unseeded_generators,
        tidy.banned_imports,
        tidy.banned_methods,
        tidy.wrong_directions,
        tidy.dead_modules,
        check_packages,
    ],
)
def test_the_modules_obey(check: Check) -> None:
    """Every handwritten module obeys every rule."""
    complaints = list(check(tidy.modules()))
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize("check", [tidy.unfinished, tidy.own_machine])
def test_the_text_files_obey(check: Callable[[dict[str, str]], Iterator[str]]) -> None:
    """No tracked text holds a note to self or the traces of a machine."""
    complaints = list(check(tidy.text_files()))
    assert not complaints, "\n" + "\n".join(complaints)


def test_the_rooms_are_where_pyproject_maps_them() -> None:
    """The checks look at the folders that are installed, and each is marked as typed."""
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == tidy.ROOMS
    unmarked = [
        folder for folder in tidy.ROOMS.values() if not (ROOT / folder / "py.typed").exists()
    ]
    assert not unmarked, f"add an empty py.typed, so that users' mypy reads our types: {unmarked}"


def module(name: str, text: str) -> Module:
    """A module as if it were in the tree."""
    return Module(name.replace(".", "/") + ".py", name, text)


PURE = "mailraft.node.mailstore.messages"
STORE = "mailraft.node.engine.store"

BAD: list[tuple[Check, str, str, str]] = [
    # (check, module, its text, what the complaint says to do)
    (tidy.long_files, PURE, "x = 1\n" * 501, "split it"),
    (tidy.long_functions, PURE, "def f():\n" + "    x = 1\n" * 70, "move it out"),
    (tidy.long_functions, STORE, "async def f():\n" + "    x = 1\n" * 70, "move it out"),
    (tidy.banned_names, PURE, "import time\ntime.time()", "from the command"),
    (tidy.banned_names, PURE, "from time import monotonic as m\nm()", "from the command"),
    (tidy.banned_names, PURE, "import time\ndef f(now=time.monotonic): ...", "from the command"),
    (tidy.banned_names, PURE, "import datetime\ndatetime.datetime.now()", "from the command"),
    (tidy.banned_names, PURE, "from datetime import datetime\ndatetime.now()", "from the command"),
    (tidy.banned_names, PURE, "import random\nrandom.random()", "from the command"),
    (tidy.banned_names, PURE, "from random import choice\nchoice('ab')", "from the command"),
    (tidy.banned_names, PURE, "import uuid\nuuid.uuid4()", "from the command"),
    (tidy.banned_names, PURE, "import os\nos.urandom(8)", "from the command"),
    (tidy.banned_names, "mailraft.router.ring", "print(1)", "structlog"),
    (tidy.unseeded_generators, PURE, "import random\nrandom.Random()", "seeded"),
    (tidy.banned_imports, "tests.unit.test_x", "import pickle", "protobuf"),
    (tidy.banned_imports, STORE, "from pickle import loads", "protobuf"),
    (tidy.banned_imports, PURE, "import rocksdict", "mailraft.node.engine"),
    (tidy.banned_imports, "mailraft.node.shard", "def f():\n    import rocksdict", "engine"),
    (tidy.banned_imports, STORE, "from pysyncobj.syncobj import SyncObj", "consensus"),
    (tidy.banned_imports, PURE, "from grpc import aio", "return effects"),
    (tidy.banned_imports, "mailraft.node.consensus.group", "import asyncio", "return effects"),
    (tidy.banned_methods, STORE, "for k, v in db.items(): ...", "check status()"),
    (tidy.banned_methods, STORE, "snapshot().keys()", "check status()"),
    (tidy.wrong_directions, "mailraft.node.shard", "import mailraft.cluster.map", "hand it in"),
    (tidy.wrong_directions, "mailraft.router.ring", "from mailraft import client", "hand it in"),
    (tidy.wrong_directions, "mailraft.client.api", "from mailraft.node import shard", "hand it in"),
    (tidy.wrong_directions, "mailraft.wire.slots", "from mailraft.router import x", "hand it in"),
    (tidy.wrong_directions, "mailraft.node.shard", "from ..cluster import map", "hand it in"),
    (tidy.dead_modules, "mailraft.node.forgotten", "x = 1", "remove it"),
    (check_packages, "mailraft.node.unlisted.module", "x = 1", "add 'mailraft.node.unlisted'"),
]


@pytest.mark.parametrize(("check", "name", "text", "instead"), BAD)
def test_a_bad_module_is_found(check: Check, name: str, text: str, instead: str) -> None:
    """Every rule finds what it forbids, and says what to do instead."""
    assert any(instead in complaint for complaint in check([module(name, text)]))


GOOD: list[tuple[Check, str, str]] = [
    (tidy.long_files, PURE, "x = 1\n" * 500),
    (tidy.long_functions, PURE, "def f():\n" + "    x = 1\n" * 69),
    (tidy.long_functions, "tests.sim.test_x", "def f():\n" + "    x = 1\n" * 99),
    (tidy.banned_names, PURE, "import random\ndef f(rng: random.Random): rng.random()"),
    (tidy.banned_names, "mailraft.node.runtime", "import time\ntime.monotonic()"),
    (tidy.banned_names, "mailraft.cluster.cli", "print(1)"),
    (tidy.unseeded_generators, PURE, "import random\nrandom.Random(7)"),
    (tidy.banned_imports, STORE, "import rocksdict"),
    (tidy.banned_imports, "mailraft.node.consensus.group", "import pysyncobj"),
    (tidy.banned_imports, "mailraft.node.runtime", "import asyncio, grpc"),
    (tidy.banned_methods, STORE, "counts.items()  # tidy: a plain dict"),
    (tidy.banned_methods, PURE, "counts.items()"),
    (tidy.wrong_directions, "mailraft.cluster.build", "from mailraft.node import runtime"),
    (tidy.wrong_directions, "mailraft.client.api", "from mailraft.router import dispatch"),
    (tidy.wrong_directions, "mailraft.node.shard", "from . import runtime"),
    (tidy.dead_modules, "mailraft.cluster.demo", "x = 1"),
]


@pytest.mark.parametrize(("check", "name", "text"), GOOD)
def test_a_good_module_passes(check: Check, name: str, text: str) -> None:
    """No rule forbids what is meant to be done."""
    assert not list(check([module(name, text)]))


def test_a_test_does_not_keep_a_module_alive() -> None:
    """Code that only its own test uses is dead."""
    used = module("mailraft.node.used", "x = 1")
    user = module("mailraft.cluster.demo", "from mailraft.node.used import x")
    test = module("tests.unit.test_used", "from mailraft.node import used")
    assert not list(tidy.dead_modules([used, user, test]))
    assert list(tidy.dead_modules([used, test]))


def test_a_package_without_modules_is_found() -> None:
    """A listed package whose folder went away is found."""
    assert any("remove it" in complaint for complaint in tidy.unlisted_packages([], ["mailraft.x"]))


@pytest.mark.parametrize(
    "text",
    [
        "see /" + "home/alice/mail",
        "cd /" + "root/src",
        "--extra-" + "index-url https://example.org",
        "https://" + "py" + "pi.org/simple",
    ],
)
def test_traces_of_a_machine_are_found(text: str) -> None:
    """A path of somebody's machine or a package host is found, with its line."""
    (complaint,) = tidy.own_machine({"docs/x.md": f"one\n{text}\n"})
    assert complaint.startswith("docs/x.md:2:")


def test_a_note_to_self_is_found() -> None:
    """Unfinished work is found in any text, with its line."""
    assert len(list(tidy.unfinished({"a.proto": "// TO" + "DO: later", "b.py": "todo = []"}))) == 1


def test_the_changelog_records_each_release() -> None:
    """Each version has one release mark, which buf breaking and the upgrade tests look up."""
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## \[(\d\S*)\]", changelog, re.MULTILINE)
    marks = re.findall(r"^<!-- release (\S+) commit: .+ -->$", changelog, re.MULTILINE)
    assert headings == marks
    version = PYPROJECT["project"]["version"]
    assert (version in headings) != version.endswith(".dev0")
