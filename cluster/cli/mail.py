"""mailraft mail: put messages in, list them, get them out."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli import mail_export, mail_import, mail_undelete
from mailraft.cluster.cli.account import AccountArgument
from mailraft.cluster.cli.connect import CertsOption, InsecureOption, ServerOption, with_client
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, fail, guarded
from mailraft.cluster.errors import ExitCode, SettingsError
from mailraft.wire import errors
from mailraft.wire.limits import UPLOAD_MAX_BYTES

if TYPE_CHECKING:
    from mailraft.client import AsyncClient, Receipt
    from mailraft.v1 import message_pb2

app = typer.Typer(
    help="Mail: deliver, list, fetch, import, export, undelete.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("import")(mail_import.import_)
app.command("export")(mail_export.export)
app.command("undelete")(mail_undelete.undelete)

PAGE_SIZE = 500
SUBJECT_CHARS = 60
FROM_CHARS = 32


@app.command()
def deliver(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="One message as it is; -: standard input.")
    ] = Path("-"),
    to: Annotated[
        list[str], typer.Option("--to", metavar="ACCOUNT", help="A recipient; may be repeated.")
    ] = [],  # noqa: B006  # typer copies it
    create: Annotated[
        bool, typer.Option("--create", help="Create recipients' accounts that do not exist.")
    ] = False,
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Deliver one message to the INBOX of each recipient.

    Example: mailraft mail deliver message.eml --to alice --to bob --create
    """
    with guarded(output):
        if not to:
            raise SettingsError("nobody to deliver to", "name a recipient with --to ACCOUNT")
        raw = _read(file)

    async def work(client: AsyncClient) -> Receipt:
        for account in to if create else ():
            with contextlib.suppress(errors.AccountExistsError):
                await client.create_account(account)
        return await client.deliver(raw, to=to)

    receipt = with_client(server, certs, insecure, output, work)
    if output is Output.JSON:
        emit_json([_outcome(each.account_id, receipt) for each in receipt.recipients])
    else:
        outcomes = [_outcome(each.account_id, receipt) for each in receipt.recipients]
        headers = ("ACCOUNT", "MESSAGE", "UID", "ERROR")
        emit_table(headers, [tuple(outcome.values()) for outcome in outcomes])
    if receipt.failed:
        message = f"not delivered to {', '.join(receipt.failed)}"
        fail(output, "NOT_DELIVERED", message, "see the errors above", ExitCode.FAILED)


@app.command("list")
def list_(
    account: AccountArgument,
    mailbox: Annotated[str, typer.Argument(metavar="MAILBOX", help="Its id, or INBOX.")] = "INBOX",
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List a mailbox, newest first.

    Example: mailraft mail list alice INBOX --limit 10
    """

    async def work(client: AsyncClient) -> tuple[list[message_pb2.Message], int]:
        from mailraft.client import MessageOrder, MessageView

        found: list[message_pb2.Message] = []
        token = ""
        while True:
            page = await client.list_messages(
                account,
                mailbox,
                order=MessageOrder.UID_DESC,
                page_size=min(PAGE_SIZE, limit - len(found)),
                page_token=token,
                view=MessageView.ENVELOPE,
            )
            found += page.messages
            token = page.next_page_token
            if not token or len(found) >= limit:
                return found, page.total_messages

    messages, total = with_client(server, certs, insecure, output, work)
    if output is Output.JSON:
        emit_json({"total": total, "messages": [_described(message) for message in messages]})
        return
    headers = ("UID", "MESSAGE", "BYTES", "RECEIVED", "FROM", "SUBJECT")
    emit_table(headers, [_row(message) for message in messages])
    if total > len(messages):
        typer.echo(f"{len(messages)} of {total} messages (more: --limit {total})", err=True)


@app.command()
def fetch(
    account: AccountArgument,
    message_id: Annotated[str, typer.Argument(metavar="MESSAGE_ID", help="As list shows.")],
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: Annotated[Output, typer.Option("-o", "--output", help="Of errors.")] = Output.TABLE,
) -> None:
    """Write a message to standard output. The bytes are those that were delivered.

    Example: mailraft mail fetch alice 0198f0c2a7d1 > message.eml
    """

    async def work(client: AsyncClient) -> bytes:
        return await client.fetch_body(account, message_id)

    raw = with_client(server, certs, insecure, output, work)
    sys.stdout.flush()
    typer.get_binary_stream("stdout").write(raw)
    typer.get_binary_stream("stdout").flush()


def _read(file: Path) -> bytes:
    try:
        if str(file) == "-":
            raw = typer.get_binary_stream("stdin").read(UPLOAD_MAX_BYTES + 1)
        else:
            with file.open("rb") as stream:
                raw = stream.read(UPLOAD_MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from error
    if not raw:
        raise SettingsError("the message is empty", "give a file, or pipe a message in")
    return raw


def _outcome(account: str, receipt: Receipt) -> dict[str, str | int]:
    told = next(each for each in receipt.recipients if each.account_id == account)
    return {
        "account": account,
        "message_id": told.message_id,
        "uid": told.memberships[0].uid if told.memberships else 0,
        "error": "" if told.error is None else f"{told.error.name}: {told.error.message}",
    }


def _described(message: message_pb2.Message) -> dict[str, object]:
    envelope = message.derived.envelope
    return {
        "id": message.id,
        "uid": _uid(message),
        "size_bytes": message.size_bytes,
        "internal_time_ms": message.internal_time_ms,
        "keywords": list(message.keywords),
        "from": [_address(each) for each in envelope.from_addrs],
        "subject": envelope.subject,
        "header_message_id": envelope.message_id,
    }


def _row(message: message_pb2.Message) -> Sequence[object]:
    envelope = message.derived.envelope
    received = dt.datetime.fromtimestamp(message.internal_time_ms / 1000, dt.UTC)
    sender = _address(envelope.from_addrs[0]) if envelope.from_addrs else ""
    return (
        _uid(message),
        message.id,
        message.size_bytes,
        f"{received:%Y-%m-%d %H:%M:%S}",
        _short(sender, FROM_CHARS),
        _short(envelope.subject, SUBJECT_CHARS),
    )


def _uid(message: message_pb2.Message) -> int:
    return message.memberships[0].uid if message.memberships else 0


def _address(address: message_pb2.Address) -> str:
    return f"{address.mailbox}@{address.host}" if address.host else address.mailbox or address.name


def _short(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1] + "…"
