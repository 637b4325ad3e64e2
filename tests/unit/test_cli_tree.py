"""Every verb of `mailraft`: an example, an output for programs, a dry run where it changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from mailraft.cluster.cli import app

# These run until they are told to stop, and print what a log prints.
PROCESSES = {"node", "router"}
# Of these a dry run would tell nothing that is not known before: they only look,
LOOK = {
    *("locate", "top", "hot", "slow-log", "version", "node list", "node status", "account show"),
    *("account log-name", "mail export", "mail list", "mail fetch", "cluster status", "shard list"),
    *("shard show", "rebalance plan", "job list", "job show", "alarm list", "check hash"),
    *("check perf", "check blobs", "check health", "backup list", "backup verify", "settings get"),
    *("config check", "audit tail", "certs list", "upgrade status", "downgrade validate"),
}
# or they are about mail or a new file or folder, and not about a cluster that runs.
ADD = {
    *("up", "account create", "mail import", "mail deliver", "backup stream", "config map"),
    "certs init",
}


def verbs(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """All commands with their names, also those that have others below them."""
    for name, each in group.commands.items():
        below = hasattr(each, "commands")
        if not below or each.invoke_without_command:
            yield " ".join((*path, name)), each
        if below:
            yield from verbs(each, (*path, name))


def _options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


VERBS = dict(verbs(typer.main.get_command(app)))


def test_each_verb_has_an_example_of_itself() -> None:
    """Which can be typed as it stands: it begins with the verb."""
    assert len(VERBS) > 50
    without = [
        name for name, each in VERBS.items() if f"Example: mailraft {name}" not in (each.help or "")
    ]
    assert not without


def test_each_verb_has_an_output_for_programs() -> None:
    """But those that are a process."""
    without = {name for name, each in VERBS.items() if not _options(each) >= {"-o", "--output"}}
    assert without <= PROCESSES


def test_what_changes_something_can_be_tried_first() -> None:
    """A verb that is not known to be harmless has a dry run; a list here that is old says so."""
    without = {name for name, each in VERBS.items() if "--dry-run" not in _options(each)}
    assert without - PROCESSES == LOOK | ADD
