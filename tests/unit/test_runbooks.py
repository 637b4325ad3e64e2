"""Runbooks: every page is rehearsed, and says nothing that a rehearsal would not run."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from mailraft.cluster.cli import app
from runbook import PAGES, steps

NAMES = sorted(each.stem for each in PAGES.glob("*.md") if each.stem != "README")
REHEARSALS = Path(__file__).parents[1] / "runbooks"
LINES_MAX = 90  # a page is read in a hurry


@pytest.mark.parametrize("name", NAMES)
def test_each_page_is_rehearsed_and_listed(name: str) -> None:
    """By a test of its name, from the page itself; and it is one page."""
    test = REHEARSALS / f"test_{name.replace('-', '_')}.py"
    assert f'run("{name}"' in test.read_text("utf-8").replace("\n            ", "")
    assert f"({name}.md)" in (PAGES / "README.md").read_text("utf-8")
    page = (PAGES / f"{name}.md").read_text("utf-8")
    assert len(page.splitlines()) <= LINES_MAX
    assert page.count("```console") == page.count("```console rehearsed"), "all of it is"


@pytest.mark.parametrize("name", NAMES)
def test_each_command_is_one_that_there_is(name: str) -> None:
    """With options that it has."""
    for step in steps(name):
        words = step.command.removeprefix("until ").partition(";")[0].split()
        if words[0] != "mailraft":
            continue
        command = typer.main.get_command(app)
        while hasattr(command, "commands") and words[1:] and words[1] in command.commands:
            command, words = command.commands[words[1]], words[1:]
        alone = getattr(command, "invoke_without_command", True)  # a group may do without one
        assert not hasattr(command, "commands") or alone, step.command
        known = {
            option
            for parameter in command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {word for word in words if word.startswith("-")} <= known, step.command


def test_the_seven_that_are_promised_are_there() -> None:
    """Each has a line in the index."""
    assert set(NAMES) >= {
        *("quorum-lost", "disk-replaced", "disk-full", "certificates-expired", "corrupt-node"),
        *("accidental-deletion", "cluster-from-backup"),
    }
