"""TLS: who gets in, and where plain text may go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from mailraft.cluster import certs
from mailraft.wire.credentials import (
    SERVER_OPTIONS,
    CannotListenError,
    Credentials,
    Insecure,
    InsecureAddressError,
    add_port,
    open_channel,
    open_sync_channel,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates of a small cluster."""
    made = tmp_path_factory.mktemp("certs")
    certs.ensure(made, certs.names_of([1]))
    return made


async def echo_server(credentials: Any) -> tuple[grpc.aio.Server, str]:
    """A server with one call."""

    async def echo(request: bytes, _: Any) -> bytes:
        return request

    server = grpc.aio.server(options=list(SERVER_OPTIONS))
    calls = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", calls),))
    port = add_port(server, "127.0.0.1:0", credentials)
    await server.start()
    return server, f"127.0.0.1:{port}"


async def test_a_client_with_a_certificate_gets_in(folder: Path) -> None:
    """Mutual TLS, whatever address the node has."""
    server, address = await echo_server(Credentials(folder, "node-1"))
    async with open_channel(address, Credentials(folder, "client")) as channel:
        assert await channel.unary_unary("/x.Y/Echo", bytes, bytes)(b"hello") == b"hello"
    await server.stop(None)


async def test_nobody_gets_in_without_one(folder: Path, tmp_path: Path) -> None:
    """Neither without a certificate, nor with one of another authority, nor in plain text."""
    server, address = await echo_server(Credentials(folder, "node-1"))
    certs.ensure(tmp_path, certs.names_of([1]))
    (tmp_path / "ca.pem").write_bytes((folder / "ca.pem").read_bytes())
    authority = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
    strangers = (
        grpc.aio.secure_channel(address, authority),
        open_channel(address, Credentials(tmp_path, "client")),
        open_channel(address, Insecure()),
    )
    for channel in strangers:
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/x.Y/Echo", bytes, bytes)(b"hello", timeout=3)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop(None)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"])
def test_plain_text_on_the_own_machine(address: str) -> None:
    """Loopback addresses are allowed when asked for."""
    open_sync_channel(address, Insecure()).close()


@pytest.mark.parametrize(
    "address", ["10.0.0.1:1", "0.0.0.0:1", "[::]:1", "mail.example.org:1", "localhost.evil:1"]
)
async def test_plain_text_goes_nowhere_else(address: str) -> None:
    """Not to another machine, and not open to others."""
    with pytest.raises(InsecureAddressError):
        open_channel(address, Insecure())
    with pytest.raises(InsecureAddressError):
        open_sync_channel(address, Insecure())
    with pytest.raises(InsecureAddressError):
        add_port(grpc.aio.server(), address, Insecure())


async def test_a_taken_port_is_an_error() -> None:
    """Two processes never share a port without a word."""
    server, address = await echo_server(Insecure())
    second = grpc.aio.server(options=list(SERVER_OPTIONS))
    with pytest.raises(CannotListenError):
        add_port(second, address, Insecure())
    await server.stop(None)
