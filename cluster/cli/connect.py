"""Which cluster a command talks to: as told, else the local one of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mailraft.cluster import runfile
from mailraft.cluster.addresses import is_loopback, split_address
from mailraft.cluster.cli.output import COMMON, Output, guarded
from mailraft.cluster.errors import CertificateError, NotReadyError, SettingsError
from mailraft.wire.credentials import AnyCredentials, Credentials, Insecure

if TYPE_CHECKING:
    from mailraft.client import AsyncClient

LOCAL_FOLDER = Path(".mailraft")
DEADLINE_S = 10.0

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="MAILRAFT_SERVER",
        metavar="HOST:PORT",
        help="A router or node. Default: the cluster that runs in ./.mailraft.",
        show_default=False,
        rich_help_panel=COMMON,
    ),
]
CertsOption = Annotated[
    Path | None,
    typer.Option(
        "--certs",
        envvar="MAILRAFT_CERTS",
        metavar="PATH",
        help="Folder of certificates, or the one in it to show. Default: those in ./.mailraft.",
        show_default=False,
        rich_help_panel=COMMON,
    ),
]
InsecureOption = Annotated[
    bool,
    typer.Option(
        "--insecure",
        envvar="MAILRAFT_INSECURE",
        help="Plain text; loopback only.",
        rich_help_panel=COMMON,
    ),
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to connect, and as whom. certs None: plain text."""

    target: str
    certs: Path | None
    name: str

    @property
    def credentials(self) -> AnyCredentials:
        return Insecure() if self.certs is None else Credentials(self.certs, self.name)

    def client(self) -> AsyncClient:
        from mailraft.client import AsyncClient

        return AsyncClient(
            self.target,
            certs=self.certs,
            name=self.name,
            insecure=self.certs is None,
            deadline_s=DEADLINE_S,
        )


def find(server: str | None, certs: Path | None, insecure: bool, name: str) -> Connection:
    """Fill in what was not told. Raises ClusterError if there is nothing to connect to, or with."""
    running = runfile.read(LOCAL_FOLDER)
    if server is None:
        if running is None:
            raise NotReadyError(
                f"no cluster runs in {LOCAL_FOLDER}",
                "start one with `mailraft up`, or name a router or node with --server",
            )
        server = running.router.address
        insecure = insecure or not running.certs
        certs = certs or running.certs_folder(LOCAL_FOLDER)
    try:
        split_address(server)
    except ValueError as error:
        raise SettingsError(f"bad --server {server!r}: {error}") from None
    if insecure:
        if not is_loopback(server):
            raise SettingsError(f"--insecure is for loopback only, and {server} is not")
        return Connection(server, None, name)
    folder = certs or LOCAL_FOLDER / "certs"
    if folder.suffix == ".pem":  # one is named, in place of that by the name of the role
        folder, name = folder.parent, folder.stem
    for file in ("ca.pem", f"{name}.pem", f"{name}.key"):
        if not (folder / file).is_file():
            raise CertificateError(
                f"{folder / file} is not there",
                "name one with --certs FOLDER/NAME.pem, or make certificates: mailraft certs init",
            )
    return Connection(server, folder, name)


def with_client(
    server: str | None,
    certs: Path | None,
    insecure: bool,
    output: Output,
    work: Callable[[AsyncClient], Awaitable[T]],
) -> T:
    """Run one command's work with a client, its failures told as guarded() does."""
    with guarded(output):
        connection = find(server, certs, insecure, "client")

        async def run() -> T:
            async with connection.client() as client:
                return await work(client)

        return asyncio.run(run())
    raise AssertionError("guarded() leaves by an exception")
