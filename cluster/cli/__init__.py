"""The `mailraft` command: one module a group of commands."""

from __future__ import annotations

import typer

from mailraft.cluster.cli import account, certs, mail, processes, status, up

app = typer.Typer(
    name="mailraft",
    help="Stores mailboxes on a cluster of machines. Try: mailraft up",
    no_args_is_help=True,
    add_completion=False,
    # Errors are one line, and help is the same in a pipe as on a terminal.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.command("node")(processes.node)
app.command("router")(processes.router)
app.command("locate")(status.locate)
app.command("version")(status.version)
app.add_typer(status.cluster, name="cluster")
app.add_typer(account.app, name="account")
app.add_typer(mail.app, name="mail")
app.add_typer(certs.app, name="certs")


def main() -> None:
    """The console script."""
    app()
