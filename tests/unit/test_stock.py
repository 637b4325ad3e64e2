"""pysyncobj as mailraft needs it: the version, the names, and what is put out of its reach."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest
from pysyncobj import syncobj

from mailraft.node.consensus import stock
from mailraft.node.consensus.group import Group

METHODS_CALLED = (
    "_SyncObj__onMessageReceived",
    "_SyncObj__setCurrentTerm",
    "_SyncObj__setState",
    "_applyCommand",
    "_checkCommandsToApply",
    "doTick",
)
GLOBALS_REPLACED = (
    "monotonicTime",
    "random",
    "pickle",
    "PIPE_NOTIFIER_ENABLED",
    "createPoller",
    "createJournal",
)


def test_version_is_the_one_that_was_read() -> None:
    """Another pysyncobj needs its source read again before anything runs on it."""
    assert version("pysyncobj") == stock.PYSYNCOBJ_VERSION


@pytest.mark.parametrize("name", [*METHODS_CALLED, *stock.OVERRIDDEN])
def test_methods_that_are_called_or_replaced_exist(name: str) -> None:
    """A renamed private method must not silently leave a correction without effect."""
    assert callable(getattr(syncobj.SyncObj, name))


@pytest.mark.parametrize("name", [n for n in stock.OVERRIDDEN if n != "_onTick"])
def test_every_listed_method_is_replaced(name: str) -> None:
    """OVERRIDDEN says what Group replaces, no more and no less."""
    assert getattr(Group, name) is not getattr(syncobj.SyncObj, name)


def test_attributes_are_set_by_the_constructor() -> None:
    """Every alias of Stock names an attribute that pysyncobj's constructor makes."""
    source = inspect.getsource(syncobj.SyncObj.__init__)
    aliases = [value for value in vars(stock.Stock).values() if isinstance(value, stock.Private)]
    assert len(aliases) > 10
    for alias in aliases:
        assert f"self.{alias.mangled.removeprefix('_SyncObj')} = " in source, alias.mangled


@pytest.mark.parametrize("name", GLOBALS_REPLACED)
def test_module_globals_are_replaced(name: str) -> None:
    """Time, chance, journals and pollers are ours; there is no pickle behind pysyncobj any more."""
    assert getattr(syncobj, name) in (
        stock.surroundings,
        stock.surroundings.monotonic,
        False,
    ) or getattr(syncobj, name).__module__.startswith(("mailraft", "stock"))


def test_pysyncobj_cannot_unpickle() -> None:
    """Row 10: whatever reaches pysyncobj's pickle fails instead of running."""
    with pytest.raises(RuntimeError, match="not part of mailraft"):
        syncobj.pickle.loads(b"cos\nsystem\n(S'true'\ntR.")
