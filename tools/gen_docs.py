"""Writes docs/cli.md, configuration.md, metrics.md, roles.md and the dashboard from their sources.

Without arguments: write them. --check: fail with a diff when they are not what would be written.

The first follows the commands of mailraft.cluster.cli, their help and their examples (paragraphs
that begin with "Example: "); the second the fields of mailraft.cluster.settings; the third what
processes register (metrics_page.py); then the table of roles (roles_page.py); the last the panels
of dashboard.py.
"""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

import dashboard
import metrics_page
import roles_page
from mailraft.cluster.cli import app
from mailraft.cluster.cli.output import COMMON
from mailraft.cluster.errors import ExitCode
from mailraft.cluster.settings import ENV_PREFIX, NodeSettings, ProcessSettings, RouterSettings

DOCS = Path(__file__).parent.parent / "docs"
GENERATED = "<!-- Written by `make docs`: change what it documents, not this page. -->"
EXAMPLE = "Example: "

CLI = f"""# Command line

{GENERATED}

`mailraft COMMAND --help` says the same. Answers go to standard output, as a table or with `-o json`
as one JSON document; an error is one line on standard error (JSON too with `-o json`), with what to
do about it.

Completion of commands and options: `mailraft --install-completion` writes it to the start file of
the shell that runs it (bash, zsh, fish, PowerShell), and counts from the next one on;
`mailraft --show-completion` prints it instead.
"""
STATUSES = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "the operation was refused, or a check did not hold",
    ExitCode.USAGE: "an argument, a setting or a file is wrong: correct it first",
    ExitCode.UNAVAILABLE: "nobody answers, no leader, or not in time: the same may work later",
    ExitCode.NOT_FOUND: "the account, mailbox or message that was named does not exist",
    ExitCode.INTERRUPTED: "Ctrl-C",
}

CONFIGURATION = f"""# Configuration

{GENERATED}

A process reads one TOML file (`mailraft node --config FILE`, `mailraft router --config FILE`), and
over it the environment: `{ENV_PREFIX}` and the name of the setting in capitals. Either is enough.
Relative paths in the file are relative to its folder, those in the environment to the current one.
Settings are read once, at the start; a wrong value, or a name in the file that is no setting, ends
it with one line and exit status 2.

`mailraft config check FILE` says whether a process would start with it, and with `--show` which
values it would have. No setting is a secret: keys are files.
"""

Command = Any  # typer brings a click of its own, which it does not export


def cli_page() -> str:
    """docs/cli.md."""
    found = list(commands())
    parts = [CLI, "## Exit statuses", _table(("status", "meaning"), _statuses())]
    common: dict[str, str] = {}
    for _, command, context in found:
        common.update(_records(command, context, common=True))
    parts += ["## Common options", _options(common.items())]
    parts += [_command(path, command, context) for path, command, context in found]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def configuration_page() -> str:
    """docs/configuration.md."""
    every = set(ProcessSettings.model_fields)
    chapters = (
        ("Every process", NodeSettings, every),
        ("Node", NodeSettings, set(NodeSettings.model_fields) - every),
        ("Router", RouterSettings, set(RouterSettings.model_fields) - every),
    )
    parts = [CONFIGURATION]
    headers = ("setting", "type", "default", "environment", "meaning")
    for title, kind, names in chapters:
        rows = [row for row in _settings(kind) if row[0].strip("`") in names]
        parts += [f"## {title}", _table(headers, rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def metrics_page_text() -> str:
    """docs/metrics.md."""
    headers = ("metric", "type", "labels", "meaning")
    parts = [metrics_page.PAGE.format(generated=GENERATED)]
    for title, registry in zip(metrics_page.CHAPTERS, metrics_page.chapters(), strict=True):
        parts += [f"## {title}", _table(headers, metrics_page.table(registry))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def roles_page_text() -> str:
    """docs/roles.md."""
    text = roles_page.PAGE.format(generated=GENERATED).strip()
    return f"{text}\n\n{_table(roles_page.HEADERS, roles_page.rows())}\n"


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "configuration.md": configuration_page,
    "metrics.md": metrics_page_text,
    "roles.md": roles_page_text,
    "../deploy/observability/dashboard.json": dashboard.dashboard,
}


def commands() -> Iterator[tuple[str, Command, Any]]:
    """Every command that does something: its words, itself, and a context of it."""
    root = typer.main.get_command(app)
    yield from _below("mailraft", root, typer.Context(root, info_name="mailraft"))


def examples(command: Command) -> list[str]:
    """Its lines to type."""
    return [each.removeprefix(EXAMPLE) for each in _paragraphs(command) if each.startswith(EXAMPLE)]


def main(argv: list[str]) -> int:
    """Write the pages, or compare them; returns the exit code."""
    if argv not in ([], ["--check"]):
        print("usage: gen_docs.py [--check]", file=sys.stderr)
        return 2
    stale = False
    for name, make in PAGES.items():
        path, made = DOCS / name, make()
        there = path.read_text("utf-8") if path.exists() else ""
        if made == there:
            continue
        if not argv:
            path.write_text(made, "utf-8")
            print(f"wrote docs/{name}")
            continue
        stale = True
        titles = (f"docs/{name} as it is", f"docs/{name} as `make docs` writes it")
        sys.stdout.writelines(
            difflib.unified_diff(
                there.splitlines(keepends=True), made.splitlines(keepends=True), *titles
            )
        )
    return int(stale)


def _below(path: str, command: Command, context: Any) -> Iterator[tuple[str, Command, Any]]:
    for name, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            below = typer.Context(each, parent=context, info_name=name)
            yield from _below(f"{path} {name}", each, below)
    if not hasattr(command, "commands") or command.invoke_without_command:
        yield path, command, context


def _command(path: str, command: Command, context: Any) -> str:
    text = [each for each in _paragraphs(command) if not each.startswith(EXAMPLE)]
    typed = "\n".join(["```console", *(f"$ {line}" for line in examples(command)), "```"])
    options = _options(_records(command, context, common=False).items())
    common = ", ".join(f"`{name}`" for name in _records(command, context, common=True))
    told = f"Common options: {common}." if common else ""
    return "\n\n".join(part for part in (f"## {path}", *text, typed, options, told) if part)


def _paragraphs(command: Command) -> list[str]:
    return [" ".join(each.split()) for each in (command.help or "").split("\n\n")]


def _records(command: Command, context: Any, *, common: bool) -> dict[str, str]:
    """What its help says of its arguments and options, those that are common or the others."""
    parameters = [each for each in command.params if (each.rich_help_panel == COMMON) == common]
    return dict(filter(None, (each.get_help_record(context) for each in parameters)))


def _options(records: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- `{name}` {text}" for name, text in records)


def _statuses() -> Iterator[tuple[str, str]]:
    return ((str(int(status)), STATUSES[status]) for status in ExitCode)


def _settings(kind: type[ProcessSettings]) -> Iterator[tuple[str, ...]]:
    schema = kind.model_json_schema()
    for name, field in schema["properties"].items():
        default = "required" if name in schema["required"] else _default(field.get("default"))
        meaning = " ".join(field.get("description", "").split())
        environment = f"`{ENV_PREFIX}{name.upper()}`"
        yield f"`{name}`", _type(field, schema["$defs"]), default, environment, meaning


def _default(value: object) -> str:
    if value is None or value == "":
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """In words, from JSON Schema."""
    if "$ref" in field:
        field = definitions[field["$ref"].rpartition("/")[2]]
    elif "anyOf" in field:  # of something and none
        field = field["anyOf"][0]
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    words = "path" if field.get("format") == "path" else field["type"]
    least, most = field.get("minimum"), field.get("maximum", field.get("exclusiveMaximum", 0) - 1)
    if least is not None:
        words += f" from {least}" if most < 0 else f" from {least} to {most}"
    return f"{words} matching `{field['pattern']}`" if "pattern" in field else words


def _table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    headers = list(headers)
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
