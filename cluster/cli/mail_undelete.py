"""mailraft mail undelete: bring back what was expunged since a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.account import AccountArgument
from mailraft.cluster.cli.connect import CertsOption, InsecureOption, ServerOption, with_client
from mailraft.cluster.cli.operating import DryRunOption
from mailraft.cluster.cli.output import Output, OutputOption, emit_json
from mailraft.cluster.cli.restore import time_ms
from mailraft.cluster.errors import ExitCode

if TYPE_CHECKING:
    from mailraft.client import AsyncClient


def undelete(
    account: AccountArgument,
    since: Annotated[
        int,
        typer.Option(
            "--since",
            parser=time_ms,
            metavar="TIME",
            help="Expunged then or later, for example 2026-11-24T12:00:00Z.",
        ),
    ],
    mailbox: Annotated[
        str, typer.Option("--mailbox", metavar="ID", help="Only from this one; or INBOX.")
    ] = "",
    dry_run: DryRunOption = False,
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring expunged messages back to where they were.

    They have their ids and new UIDs. Those of a mailbox that is gone go to the INBOX. What was
    expunged longer ago than the undelete window (seven days, unless set otherwise) is in a backup
    at best. Exit status 4: there is nothing.

    Example: mailraft mail undelete alice --since 2026-11-24T12:00:00Z
    """

    async def work(client: AsyncClient) -> tuple[list[str], bool]:
        from mailraft.v1 import message_service_pb2

        found: list[str] = []
        selector = message_service_pb2.ExpungedSince(mailbox_id=mailbox, from_ms=since)
        while True:
            reply = await client.undelete_messages(account, selector, validate_only=dry_run)
            found += [each.id for each in reply.messages]
            if dry_run or not reply.more or not reply.messages:
                return found, reply.more

    ids, more = with_client(server, certs, insecure, output, work)
    if output is Output.JSON:
        emit_json({"account": account, "messages": ids, "more": more, "dry_run": dry_run})
    else:
        count = f"{len(ids)} or more" if more else str(len(ids))
        line = f"undeleted {account} messages={count}"
        typer.echo(f"would be: {line}" if dry_run else line)
    raise typer.Exit(ExitCode.OK if ids else ExitCode.NOT_FOUND)
