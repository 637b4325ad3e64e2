"""mailraft mail export: an account's mail as files, byte for byte, resumable."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster import mailfiles
from mailraft.cluster.cli.account import AccountArgument
from mailraft.cluster.cli.connect import CertsOption, InsecureOption, ServerOption, with_client
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, fail, guarded
from mailraft.cluster.cli.progress import Progress, progress
from mailraft.cluster.errors import ExitCode, SettingsError
from mailraft.cluster.mailfiles import INDEX_NAME, MBOX_SUFFIX, Entry, Format, Index
from mailraft.wire import errors

if TYPE_CHECKING:
    from mailraft.client import AsyncClient
    from mailraft.v1 import mailbox_pb2, message_pb2

PAGE_SIZE = 500
# Bodies that are fetched at the same time.
AT_ONCE_MAX = 16
AT_ONCE_MAX_BYTES = 32 * 1024 * 1024


def export(
    account: AccountArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to; made if it is not there.")
    ],
    format_: Annotated[
        Format, typer.Option("--format", help="One file a mailbox, or one a message.")
    ] = Format.MBOX,
    mailbox: Annotated[
        str, typer.Option("--mailbox", help="Only this one: its id, or INBOX.")
    ] = "",
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Export mail to files. Run it again after an interruption, or later for what came since.

    The bytes are as they were delivered; keywords, dates and ids go into index.jsonl. What cannot
    be read is skipped and reported, and makes the exit status 1.

    Example: mailraft mail export alice backup --format mbox
    """
    with guarded(output):
        target = Target(folder, format_)

    async def work(client: AsyncClient) -> Report:
        return await Exporter(client, account, target, mailbox).run()

    report = with_client(server, certs, insecure, output, work)
    if output is Output.JSON:
        emit_json({"exported": report.exported, "before": report.before, "skipped": report.skipped})
    else:
        for skipped in report.skipped:
            typer.echo(f"skipped {skipped}", err=True)
        counts = (report.exported, report.before, len(report.skipped))
        emit_table(("EXPORTED", "BEFORE", "SKIPPED"), [counts])
    if report.skipped:
        message = f"{len(report.skipped)} messages were skipped"
        fail(output, "SKIPPED", message, "they are listed above", ExitCode.FAILED)


@dataclass(slots=True)
class Report:
    exported: int = 0
    before: int = 0  # by an earlier run
    skipped: list[str] = field(default_factory=list)


class Target:
    """The folder that is written. What its index names is whole; anything behind is cut off."""

    def __init__(self, folder: Path, format_: Format) -> None:
        """Raises SettingsError for a folder that holds something else."""
        self.folder, self.format = folder, format_
        index = folder / INDEX_NAME
        known = Index.read(index)
        if folder.exists() and not index.exists() and any(folder.iterdir()):
            raise SettingsError(f"{folder} is not empty, and no export", "name another folder")
        if any((entry.number > 0) != (format_ is Format.MBOX) for entry in known.entries.values()):
            raise SettingsError(f"{folder} was exported in another format", "name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._ends: dict[str, tuple[int, int]] = {}  # of each mbox: bytes and messages
        self.done: set[tuple[str, int, int]] = set()
        whole = [entry for entry in known.entries.values() if self._is_whole(entry)]
        for entry in whole:
            self.done.add((entry.mailbox_id, entry.uid_validity, entry.uid))
            end_bytes, number = self._ends.get(entry.file, (0, 0))
            end = max(end_bytes, entry.end_bytes), max(number, entry.number)
            self._ends[entry.file] = end
        # Written anew, so that a line that a crash cut short is gone.
        mailfiles.write_file(
            index, "".join(entry.to_line() for entry in whole).encode(), folder / ".index.tmp"
        )
        self._index = index

    def _is_whole(self, entry: Entry) -> bool:
        path = self.folder / entry.file
        if not path.is_file():
            return False
        size_bytes = path.stat().st_size
        return size_bytes >= entry.end_bytes if entry.number else size_bytes == entry.size_bytes

    def write(self, found: list[tuple[Entry, bytes]]) -> None:
        """The messages, and then their lines in the index."""
        if self.format is Format.MBOX:
            entries = self._write_mbox(found) if found else []
        else:
            entries = [self._write_one(entry, raw) for entry, raw in found]
        with self._index.open("a", encoding="utf-8") as file:
            file.writelines(entry.to_line() for entry in entries)

    def _write_mbox(self, found: list[tuple[Entry, bytes]]) -> list[Entry]:
        """All are of one mailbox."""
        name = mailfiles.flat_name(found[0][0].mailbox) + MBOX_SUFFIX
        end_bytes, number = self._ends.get(name, (0, 0))
        entries = []
        path = self.folder / name
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(end_bytes)
            file.seek(end_bytes)
            for entry, raw in found:
                end_bytes += file.write(mailfiles.mbox_message(raw, entry.internal_time_ms))
                number += 1
                entries.append(replace(entry, file=name, number=number, end_bytes=end_bytes))
            file.flush()
            os.fsync(file.fileno())
        self._ends[name] = end_bytes, number
        return entries

    def _write_one(self, entry: Entry, raw: bytes) -> Entry:
        if self.format is Format.MAILDIR:
            place = Path(mailfiles.maildir_folder(entry.mailbox))
            for state in ("new", "tmp", "cur"):
                (self.folder / place / state).mkdir(parents=True, exist_ok=True)
            unique = f"{entry.message_id}-{entry.uid_validity}-{entry.uid}"
            name = mailfiles.maildir_name(
                unique, entry.internal_time_ms, entry.keywords, entry.deleted
            )
            path, temporary = place / "cur" / name, place / "tmp" / unique
        else:
            place = Path(mailfiles.flat_name(entry.mailbox))
            path = place / f"{entry.uid:010d}-{entry.message_id}.eml"
            temporary = path.with_suffix(".tmp")
        mailfiles.write_file(self.folder / path, raw, self.folder / temporary)
        return replace(entry, file=path.as_posix())


class Exporter:
    def __init__(self, client: AsyncClient, account: str, target: Target, mailbox: str) -> None:
        self._client, self._account = client, account
        self._target, self._mailbox = target, mailbox
        self._report = Report()

    async def run(self) -> Report:
        mailboxes = await self._client.list_mailboxes(self._account)
        paths = _paths(mailboxes)
        chosen = [each for each in mailboxes if self._is_chosen(each)]
        if not chosen:
            raise errors.MailboxNotFoundError(f"no mailbox {self._mailbox!r}")
        total = sum(each.total_messages for each in chosen)
        with progress("exporting", total, in_bytes=False) as bar:
            for mailbox in chosen:
                await self._export(mailbox, paths[mailbox.id], bar)
        return self._report

    def _is_chosen(self, mailbox: mailbox_pb2.Mailbox) -> bool:
        if not self._mailbox:
            return True
        inbox = self._mailbox.upper() == mailfiles.INBOX and mailbox.role == 1
        return inbox or mailbox.id == self._mailbox

    async def _export(
        self, mailbox: mailbox_pb2.Mailbox, path: tuple[str, ...], bar: Progress
    ) -> None:
        async for group in self._groups(mailbox):
            bodies = await asyncio.gather(*(self._fetch(message) for message in group))
            found = []
            for message, raw in zip(group, bodies, strict=True):
                bar.advance(1)
                if raw is not None:
                    found.append((_entry(message, mailbox, path, raw), raw))
            self._target.write(found)
            self._report.exported += len(found)

    async def _groups(
        self, mailbox: mailbox_pb2.Mailbox
    ) -> AsyncIterator[list[message_pb2.Message]]:
        group: list[message_pb2.Message] = []
        size_bytes = 0
        messages = self._client.iter_messages(self._account, mailbox.id, page_size=PAGE_SIZE)
        async for message in messages:
            place = next(each for each in message.memberships if each.mailbox_id == mailbox.id)
            if (mailbox.id, place.uid_validity, place.uid) in self._target.done:
                self._report.before += 1
                continue
            too_much = size_bytes + message.size_bytes > AT_ONCE_MAX_BYTES
            if group and (len(group) >= AT_ONCE_MAX or too_much):
                yield group
                group, size_bytes = [], 0
            group.append(message)
            size_bytes += message.size_bytes
        if group:
            yield group

    async def _fetch(self, message: message_pb2.Message) -> bytes | None:
        """The bytes; None for what is gone meanwhile, or damaged."""
        from mailraft.client import IntegrityError

        try:
            return await self._client.fetch_body(self._account, message.id)
        except errors.MessageNotFoundError:
            return None
        except (errors.DataLossError, IntegrityError) as error:
            self._report.skipped.append(f"{message.id}: {error}")
            return None


def _paths(mailboxes: list[mailbox_pb2.Mailbox]) -> dict[str, tuple[str, ...]]:
    """Ids to names from the top."""
    there = {each.id: each for each in mailboxes}
    found: dict[str, tuple[str, ...]] = {}
    for mailbox in mailboxes:
        path: tuple[str, ...] = (mailbox.name,)
        parent = mailbox.parent_id
        while parent:
            path, parent = (there[parent].name, *path), there[parent].parent_id
        found[mailbox.id] = path
    return found


def _entry(
    message: message_pb2.Message,
    mailbox: mailbox_pb2.Mailbox,
    path: tuple[str, ...],
    raw: bytes,
) -> Entry:
    place = next(each for each in message.memberships if each.mailbox_id == mailbox.id)
    return Entry(
        file="",
        size_bytes=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
        mailbox=path,
        role=mailbox.role,
        keywords=tuple(message.keywords),
        deleted=place.deleted,
        internal_time_ms=message.internal_time_ms,
        message_id=message.id,
        thread_id=message.thread_id,
        mailbox_id=mailbox.id,
        uid_validity=place.uid_validity,
        uid=place.uid,
    )
