"""Channels that are kept, and opened anew when certificates are changed."""

from __future__ import annotations

from pathlib import Path

from mailraft.cluster import certs
from mailraft.wire.channels import Channels
from mailraft.wire.credentials import Credentials


async def test_a_channel_lasts_as_long_as_its_certificate(tmp_path: Path) -> None:
    """While files are being changed the old one goes on; then each address gets a new one."""
    certs.ensure(tmp_path, certs.names_of([]))
    channels = Channels(Credentials(tmp_path, "client"))
    first = channels.to("127.0.0.1:1")
    assert channels.to("127.0.0.1:1") is first
    assert channels.to("127.0.0.1:2") is not first
    (tmp_path / "client.pem").rename(tmp_path / "aside")
    assert channels.to("127.0.0.1:1") is first
    (tmp_path / "aside").rename(tmp_path / "client.pem")
    certs.rotate(tmp_path)
    second = channels.to("127.0.0.1:1")
    assert second is not first
    assert channels.to("127.0.0.1:1") is second
    await channels.keep(["127.0.0.1:1"])
    assert channels.to("127.0.0.1:1") is second
    await channels.close()
