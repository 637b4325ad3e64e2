"""mailraft mail import: mail from files into an account, once, however often it is run."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.account import AccountArgument
from mailraft.cluster.cli.connect import CertsOption, InsecureOption, ServerOption, with_client
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, fail, guarded
from mailraft.cluster.cli.progress import Progress, progress
from mailraft.cluster.errors import ExitCode, SettingsError
from mailraft.cluster.mail_sources import Record, Source
from mailraft.cluster.mailfiles import INBOX, flat_name
from mailraft.wire import errors
from mailraft.wire.limits import MESSAGE_MAX_BYTES, UPLOAD_MAX_BYTES

if TYPE_CHECKING:
    from mailraft.client import AsyncClient

BATCH_MESSAGES_MAX = 50
BATCH_MAX_BYTES = 1024 * 1024
_INBOX_ROLE = 1
# Request ids of single messages, behind those of every batch.
_ONE_BY_ONE = 1 << 24


def import_(
    account: AccountArgument,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="An mbox, a folder of them, a Maildir, or a folder of .eml files.",
        ),
    ],
    mailbox: Annotated[
        str, typer.Option("--mailbox", help="Put all into this one: its id, or INBOX.")
    ] = "",
    create: Annotated[
        bool, typer.Option("--create", help="Create the account if it does not exist.")
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option("--state", help="Remembers what is done. Default: beside the source."),
    ] = None,
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Import mail from files. Run it again after an interruption: nothing is imported twice.

    Mailboxes, keywords and dates come from an index.jsonl beside the mail, or what the format
    tells. What is damaged is skipped and reported, and makes the exit status 1.

    Example: mailraft mail import alice Maildir --create
    """
    with guarded(output):
        done = State.open(state or state_path(source, account), account)
        mail = Source(source, done.max_bytes)

    async def work(client: AsyncClient) -> Report:
        if create:
            with contextlib.suppress(errors.AccountExistsError):
                await client.create_account(account)
        with progress("importing", mail.size_bytes()) as bar:
            return await Importer(client, account, mail, done, mailbox, bar).run()

    report = with_client(server, certs, insecure, output, work)
    if output is Output.JSON:
        emit_json(report.told())
    else:
        for skipped in report.skipped:
            typer.echo(f"skipped {skipped}", err=True)
        emit_table(("IMPORTED", "BEFORE", "SKIPPED"), [report.counts()])
    if report.skipped:
        message = f"{len(report.skipped)} records were skipped"
        fail(output, "SKIPPED", message, "they are listed above", ExitCode.FAILED)


def state_path(source: Path, account: str) -> Path:
    resolved = source.resolve()
    return resolved.parent / f"{resolved.name}.{flat_name((account,))}.import.jsonl"


@dataclass(slots=True)
class Report:
    imported: int = 0
    before: int = 0  # by an earlier run
    skipped: list[str] = field(default_factory=list)

    def counts(self) -> tuple[int, int, int]:
        return self.imported, self.before, len(self.skipped)

    def told(self) -> dict[str, object]:
        return {"imported": self.imported, "before": self.before, "skipped": self.skipped}


class State:
    """What is done, on disk: one line a step, appended when the step is answered.

    A step that was sent and not written down is sent again under the same request id, which
    follows from the run's own and the number of the step: so it is done once. What was uploaded
    for it is uploaded again, and goes by itself.

    max_bytes: larger messages are skipped, from the first run to the last: the steps depend on it.
    """

    def __init__(
        self, path: Path, run: bytes, max_bytes: int, steps: list[dict[str, object]]
    ) -> None:
        self._path, self.run, self.max_bytes, self.steps = path, run, max_bytes, steps

    @classmethod
    def open(cls, path: Path, account: str) -> State:
        """Raises SettingsError for a file of another import."""
        from mailraft.client.ids import request_ids

        lines: list[dict[str, object]] = []
        if path.exists():
            whole, _, torn = path.read_text("utf-8", errors="replace").rpartition("\n")
            try:
                lines = [json.loads(line) for line in whole.splitlines()]
            except ValueError:
                raise SettingsError(f"{path} is no state of an import", "move it away") from None
            if torn:  # the last line was cut by a crash: its step is done again
                path.write_text(whole + "\n" if whole else "", "utf-8")
        if lines:
            head = lines[0]
            if head.get("account") != account or "run" not in head:
                hint = "name another one with --state"
                raise SettingsError(f"{path} is the state of another import", hint)
            # Release 0.1.0 wrote no limit and had this one.
            max_bytes = int(str(head.get("max_bytes", MESSAGE_MAX_BYTES)))
            return cls(path, bytes.fromhex(str(head["run"])), max_bytes, lines[1:])
        run = request_ids.next()
        state = cls(path, run, UPLOAD_MAX_BYTES, [])
        state._append({"run": run.hex(), "account": account, "max_bytes": state.max_bytes})
        return state

    def add(self, step: dict[str, object]) -> None:
        self.steps.append(step)
        self._append(step)

    def _append(self, line: dict[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(slots=True)
class _Step:
    """Records of one mailbox that go in together; link: one that another mailbox has already."""

    records: list[Record]
    link: bool = False


class Importer:
    def __init__(
        self,
        client: AsyncClient,
        account: str,
        source: Source,
        state: State,
        mailbox: str,
        bar: Progress,
    ) -> None:
        self._client, self._account, self._source = client, account, source
        self._state, self._mailbox, self._bar = state, mailbox, bar
        self._report = Report(skipped=list(source.index.problems))
        self._new_ids: dict[str, str] = {}  # by original id
        self._mailboxes: dict[tuple[str, ...], str] = {}

    async def run(self) -> Report:
        for number, step in enumerate(self._steps()):
            size_bytes = sum(len(each.raw) for each in step.records)
            if number < len(self._state.steps):
                self._recall(step, self._state.steps[number])
                self._bar.advance(size_bytes)
                continue
            ids, problems = await self._carry_out(step, number)
            names = [each.name for each in step.records]
            self._state.add({"names": names, "ids": ids, "problems": problems})
            self._learn(step, ids, problems)
            self._report.imported += sum(bool(each) for each in ids)
            self._bar.advance(size_bytes)
        return self._report

    def _steps(self) -> Iterator[_Step]:
        """The same ones for the same source, whatever becomes of them."""
        batch: list[Record] = []
        size_bytes = 0
        seen: set[str] = set()
        for record in self._source:
            if record.problem:
                self._report.skipped.append(f"{record.name}: {record.problem}")
                continue
            link = bool(record.original_id) and record.original_id in seen
            full = (
                len(batch) >= BATCH_MESSAGES_MAX or size_bytes + len(record.raw) > BATCH_MAX_BYTES
            )
            if batch and (full or link or _where(record) != _where(batch[0])):
                yield _Step(batch)
                batch, size_bytes = [], 0
            seen.add(record.original_id)
            if link:
                yield _Step([record], link=True)
                continue
            batch.append(record)
            size_bytes += len(record.raw)
        if batch:
            yield _Step(batch)

    def _recall(self, step: _Step, done: dict[str, object]) -> None:
        if done.get("names") != [each.name for each in step.records]:
            raise SettingsError(
                "the source is not what it was when the import began",
                "import it under another --state, which may import mail twice",
            )
        ids, problems = done["ids"], done["problems"]
        assert isinstance(ids, list)
        assert isinstance(problems, list)
        self._learn(step, ids, problems)
        self._report.before += sum(bool(each) for each in ids)

    def _learn(self, step: _Step, ids: list[str], problems: list[str]) -> None:
        for record, new_id in zip(step.records, ids, strict=True):
            if record.original_id and new_id:
                self._new_ids[record.original_id] = new_id
        self._report.skipped += problems

    async def _carry_out(self, step: _Step, number: int) -> tuple[list[str], list[str]]:
        """The new ids, "" for what did not go in, and why."""
        from mailraft.client.ids import following_id

        request_id = following_id(self._state.run, number + 1)
        first = step.records[0]
        if step.link and (known := self._new_ids.get(first.original_id)):
            place = await self._place(first)
            marks = {place: True} if first.deleted and place != INBOX else None
            await self._client.update_memberships(
                self._account, [known], add=[place], deleted=marks, request_id=request_id
            )
            return [known], []
        try:
            return await self._append(step.records, request_id), []
        except errors.InvalidArgumentError as error:
            if len(step.records) == 1:
                return [""], [f"{first.name}: {error.message}"]
        ids, problems = [], []
        for place_in_step, record in enumerate(step.records):
            one = _ONE_BY_ONE + number * BATCH_MESSAGES_MAX + place_in_step
            try:
                ids += await self._append([record], following_id(self._state.run, one))
            except errors.InvalidArgumentError as error:
                ids.append("")
                problems.append(f"{record.name}: {error.message}")
        return ids, problems

    async def _append(self, records: list[Record], request_id: bytes) -> list[str]:
        from mailraft.client import NewMessage

        messages = [
            NewMessage(
                record.raw,
                keywords=record.keywords,
                internal_time=_time(record.internal_time_ms),
                deleted=record.deleted,
            )
            for record in records
        ]
        stored = await self._client.append(
            self._account, messages, await self._place(records[0]), request_id=request_id
        )
        return [each.message_id for each in stored]

    # ---- where it goes

    async def _place(self, record: Record) -> str:
        """The mailbox' id, or INBOX; made if need be."""
        if self._mailbox:
            return self._mailbox
        path = record.mailbox or (INBOX,)
        if record.role == _INBOX_ROLE or path == (INBOX,):
            return INBOX
        if not self._mailboxes:
            await self._look()
        found = self._mailboxes.get(path)
        return found or await self._make(path, record.role)

    async def _look(self) -> None:
        there = {each.id: each for each in await self._client.list_mailboxes(self._account)}
        for mailbox in there.values():
            path: tuple[str, ...] = (mailbox.name,)
            parent = mailbox.parent_id
            while parent:
                path, parent = (there[parent].name, *path), there[parent].parent_id
            self._mailboxes[path] = mailbox.id

    async def _make(self, path: tuple[str, ...], role: int) -> str:
        from mailraft.client import MailboxRole

        parent = ""
        for depth in range(1, len(path)):
            above = path[:depth]
            parent = self._mailboxes.get(above) or await self._make(above, 0)
        try:
            made = await self._client.create_mailbox(
                self._account, path[-1], parent_id=parent, role=MailboxRole(role)
            )
        except errors.MailboxRoleExistsError:
            return await self._make(path, 0)
        except errors.MailboxExistsError:
            await self._look()
            return self._mailboxes[path]
        self._mailboxes[path] = made.id
        return made.id


def _where(record: Record) -> tuple[tuple[str, ...], int]:
    return record.mailbox, record.role


def _time(internal_time_ms: int) -> dt.datetime | None:
    if not internal_time_ms:
        return None
    try:
        return dt.datetime.fromtimestamp(internal_time_ms / 1000, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return None
