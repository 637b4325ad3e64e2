"""mailraft account: make accounts and look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.connect import CertsOption, InsecureOption, ServerOption, with_client
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, guarded

if TYPE_CHECKING:
    from mailraft.client import AsyncClient
    from mailraft.v1 import account_pb2

app = typer.Typer(
    help="Accounts: create, show, log-name.", no_args_is_help=True, rich_markup_mode=None
)

AccountArgument = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its id.")]


@app.command()
def create(
    account: AccountArgument,
    max_bytes: Annotated[int, typer.Option(min=0, help="Quota in bytes; 0: none.")] = 0,
    max_messages: Annotated[int, typer.Option(min=0, help="Quota in messages; 0: none.")] = 0,
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create an account with its INBOX.

    Example: mailraft account create alice --max-bytes 5000000000
    """

    async def work(client: AsyncClient) -> account_pb2.Account:
        return await client.create_account(account, max_bytes=max_bytes, max_messages=max_messages)

    _show(with_client(server, certs, insecure, output, work), output)


@app.command()
def show(
    account: AccountArgument,
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show an account's quota and what is used of it.

    Example: mailraft account show alice -o json
    """

    async def work(client: AsyncClient) -> account_pb2.Account:
        return await client.get_account(account)

    _show(with_client(server, certs, insecure, output, work), output)


@app.command("log-name")
def log_name(
    account: AccountArgument,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The log_key_file.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what stands for an account in log lines, of processes with this key.

    Example: mailraft account log-name alice --key /etc/mailraft/log.key
    """
    from mailraft.cluster import compose
    from mailraft.wire.observed import pseudonym

    with guarded(output):
        name = pseudonym(account, compose.log_key(key))
    if output is Output.JSON:
        emit_json({"account": account, "log_name": name})
    else:
        typer.echo(name)


def _show(account: account_pb2.Account, output: Output) -> None:
    quota, usage = account.quota, account.usage
    if output is Output.JSON:
        emit_json(
            {
                "account": account.account_id,
                "messages": usage.messages,
                "max_messages": quota.max_messages,
                "bytes": usage.bytes,
                "max_bytes": quota.max_bytes,
                "mailboxes": account.mailboxes,
            }
        )
        return
    emit_table(
        ("ACCOUNT", "MESSAGES", "OF", "BYTES", "OF", "MAILBOXES"),
        [
            (
                account.account_id,
                usage.messages,
                quota.max_messages or "-",
                usage.bytes,
                quota.max_bytes or "-",
                account.mailboxes,
            )
        ],
    )
