"""The `mailraft` command: one module a group of commands."""

from __future__ import annotations

import typer

from mailraft.cluster.cli import (
    account,
    audit,
    backup,
    certs,
    check,
    config,
    debug,
    health,
    hot,
    job,
    mail,
    node,
    perf,
    processes,
    rebalance,
    restore,
    settings,
    shard,
    slow_log,
    status,
    top,
    unsafe,
    up,
    upgrade,
)
from mailraft.cluster.cli.panels import Panels

app = typer.Typer(
    name="mailraft",
    help="Stores mailboxes on a cluster of machines. Try: mailraft up",
    no_args_is_help=True,
    cls=Panels,
    # Errors are one line, and help is the same in a pipe as on a terminal.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
START, MAIL, OPERATE = "Start processes", "Use mail", "Operate a cluster"
app.command("up", rich_help_panel=START)(up.up)
app.add_typer(node.app, name="node", rich_help_panel=START)
app.command("router", rich_help_panel=START)(processes.router)
app.add_typer(account.app, name="account", rich_help_panel=MAIL)
app.add_typer(mail.app, name="mail", rich_help_panel=MAIL)
app.command("locate", rich_help_panel=MAIL)(status.locate)
app.add_typer(status.cluster, name="cluster", rich_help_panel=OPERATE)
app.command("top", rich_help_panel=OPERATE)(top.top)
app.command("hot", rich_help_panel=OPERATE)(hot.hot)
app.command("slow-log", rich_help_panel=OPERATE)(slow_log.slow_log)
app.add_typer(shard.app, name="shard", rich_help_panel=OPERATE)
app.add_typer(rebalance.app, name="rebalance", rich_help_panel=OPERATE)
app.add_typer(job.app, name="job", rich_help_panel=OPERATE)
app.add_typer(health.app, name="alarm", rich_help_panel=OPERATE)
app.add_typer(check.app, name="check", rich_help_panel=OPERATE)
app.add_typer(backup.app, name="backup", rich_help_panel=OPERATE)
app.add_typer(restore.app, name="restore", rich_help_panel=OPERATE)
app.add_typer(unsafe.app, name="unsafe", rich_help_panel=OPERATE)
app.add_typer(settings.app, name="settings", rich_help_panel=OPERATE)
app.add_typer(upgrade.app, name="upgrade", rich_help_panel=OPERATE)
app.add_typer(upgrade.downgrade, name="downgrade", rich_help_panel=OPERATE)
app.add_typer(config.app, name="config", rich_help_panel=OPERATE)
app.add_typer(audit.app, name="audit", rich_help_panel=OPERATE)
app.add_typer(debug.app, name="debug", rich_help_panel=OPERATE)
app.add_typer(certs.app, name="certs", rich_help_panel=OPERATE)
check.app.command("health")(health.check_health)
check.app.command("perf")(perf.check_perf)
app.command("version")(status.version)


def main() -> None:
    """The console script."""
    app()
