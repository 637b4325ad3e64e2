"""Runs the commands of a runbook as they stand on its page, so that page and test cannot differ.

    ```console rehearsed
    $ mailraft check health                   on the operator's machine
    n2# systemctl stop mailraft-node@2        as root on a node's host
    > give up n2                              what is typed when the command before it asks
    ```

A page names hosts and folders as docs/operations.md does; a rehearsal says what stands for them.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import commands

PAGES = Path(__file__).parents[2] / "docs" / "runbooks"
COMMAND_S_MAX = 240.0
UNTIL_S_MAX = 120.0
_BLOCK = re.compile(r"^```console rehearsed\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"(?P<host>[a-z0-9]*)[$#] (?P<command>.+)")
_UNTIL = re.compile(r"until (?P<command>.+); do sleep (?P<pause>\d+); done")
# What a page may tell to do without mailraft.
_TOOLS = frozenset({"cp", "df", "install", "mv", "rm", "scp"})
_REMOTE = re.compile(r"(?<=\s)[a-z0-9]+:(?=/)")

# systemctl: what to do, and with which unit.
Control = Callable[[str, str], Awaitable[None]]


@dataclass(slots=True)
class Step:
    """One command, where it is typed, and what is typed when it asks. output: what it printed."""

    host: str
    command: str
    typed: list[str] = field(default_factory=list)
    output: str = ""
    status: int = 0


def steps(page: str) -> list[Step]:
    """Every command of the blocks that are rehearsed, in order."""
    found: list[Step] = []
    for block in _BLOCK.findall((PAGES / f"{page}.md").read_text("utf-8")):
        for line in block.splitlines():
            if line.startswith("> "):
                found[-1].typed.append(line.removeprefix("> "))
                continue
            told = _LINE.fullmatch(line)
            assert told, f"{page}.md: not a command: {line!r}"
            found.append(Step(told["host"], told["command"]))
    assert found, f"{page}.md rehearses nothing"
    return found


class Rehearsal:
    """desk: the operator's working folder. names: what a page says, to what it is here."""

    def __init__(
        self,
        desk: Path,
        environment: Mapping[str, str],
        names: Mapping[str, str],
        control: Control,
    ) -> None:
        self._desk, self._names, self._control = desk, dict(names), control
        self._environment = {**os.environ, **environment}

    async def run(
        self, page: str, *, expect: Mapping[str, int | None] | None = None
    ) -> AsyncIterator[Step]:
        """Each step once it is done. expect: exit statuses other than 0, by command as written;
        None: any.
        """
        for step in steps(page):
            print(f"\n{step.host}$ {step.command}", flush=True)
            await self._do(step)
            print(step.output, end="", flush=True)
            wanted = (expect or {}).get(step.command, 0)
            assert wanted in (None, step.status), f"{step.command}: {step.status}, not {wanted}"
            yield step

    async def _do(self, step: Step) -> None:
        until = _UNTIL.fullmatch(step.command)
        if until is None:
            await self._once(step, step.command)
            return
        until_s = time.monotonic() + UNTIL_S_MAX
        while True:
            await self._once(step, until["command"])
            if step.status == 0:
                return
            assert time.monotonic() < until_s, f"not within {UNTIL_S_MAX:.0f} s: {step.output}"
            await asyncio.sleep(min(float(until["pause"]), 1.0))

    async def _once(self, step: Step, command: str) -> None:
        command = _REMOTE.sub("", command)  # all hosts are this one
        for said in sorted(self._names, key=len, reverse=True):
            command = command.replace(said, self._names[said])
        program, *arguments = shlex.split(command)
        if program == "systemctl":
            doing, unit = arguments
            await self._control(doing, unit)
            return
        if program == "mailraft":
            program, *arguments = (*commands.COMMAND, *arguments)
        else:
            assert program in _TOOLS, f"a runbook has no {program}"
            program = "cp" if program == "scp" else program
        done = await asyncio.to_thread(
            subprocess.run,
            (program, *arguments),
            cwd=self._desk,
            env=self._environment,
            input="".join(f"{line}\n" for line in step.typed),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
        )
        step.output, step.status = done.stdout, done.returncode
