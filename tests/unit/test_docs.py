"""The generated pages are what they document, and every command has an example that is right."""

import re
import shlex
from typing import Any

import pytest
import typer

import gen_docs
from mailraft.cluster.cli import app
from mailraft.cluster.errors import ExitCode
from mailraft.cluster.settings import NodeSettings, RouterSettings

COMMANDS = {path: (command, context) for path, command, context in gen_docs.commands()}
HELP_COLUMNS = 76  # a longer example would be broken in two in a terminal of 80 columns


def test_the_pages_are_current() -> None:
    """Written anew they stay the same: `make docs` was run after the last change."""
    assert gen_docs.main(["--check"]) == 0, "run `make docs`"


def test_a_stale_page_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The difference is told."""
    monkeypatch.setitem(gen_docs.PAGES, "cli.md", lambda: gen_docs.cli_page() + "one more\n")
    assert gen_docs.main(["--check"]) == 1
    assert "+one more" in capsys.readouterr().out


@pytest.mark.parametrize("path", COMMANDS)
def test_a_command_explains_itself(path: str) -> None:
    """It has a first sentence that fits a list, and examples that it would take as they are."""
    command, context = COMMANDS[path]
    assert not command.get_short_help_str(HELP_COLUMNS).endswith("..."), "shorten its first line"
    examples = gen_docs.examples(command)
    assert examples, f"add a paragraph to its docstring: {gen_docs.EXAMPLE}{path} ..."
    for example in examples:
        assert f"{gen_docs.EXAMPLE}{example}" in context.get_help(), "it is broken in two: shorten"
        assert example.startswith(path)
        words = shlex.split(example.removeprefix(path).partition(" > ")[0])
        command.make_context(path, words)  # raises a usage error


def test_a_wrong_example_is_seen() -> None:
    """What the test above relies on."""
    command: Any = COMMANDS["mailraft mail list"][0]
    with pytest.raises(Exception, match="No such option"):
        command.make_context("list", ["alice", "--limt", "5"])


def test_every_command_and_exit_status_is_on_its_page() -> None:
    """None is left out, whatever group it is in."""
    page = gen_docs.cli_page()
    root: Any = typer.main.get_command(app)
    groups = [name for name, each in root.commands.items() if hasattr(each, "commands")]
    assert groups
    for group in groups:
        for name in root.commands[group].commands:
            assert f"\n## mailraft {group} {name}\n" in page
    for status in ExitCode:
        assert f"| {int(status)} | " in page


@pytest.mark.parametrize("kind", [NodeSettings, RouterSettings])
def test_every_setting_is_on_its_page(kind: type[NodeSettings | RouterSettings]) -> None:
    """With a meaning, a unit in its name or its type, and its name in the environment."""
    page = gen_docs.configuration_page()
    for name in kind.model_fields:
        row = rf"^\| `{name}` \| [^|]+ \| [^|]+ \| `MAILRAFT_{name.upper()}` \| \S.{{10,}} \|$"
        assert len(re.findall(row, page, re.MULTILINE)) == 1, name
