"""Certificates and their authority are changed under load, on real processes: no call fails."""

from __future__ import annotations

import asyncio

import pytest

from mailraft.client import AsyncClient
from mailraft.cluster import certs
from mailraft.cluster.certs import Step
from mailraft.cluster.local import LocalCluster

BETWEEN_S = 2.5  # long enough for everybody to have looked at the files
DEADLINE_S = 20.0
ACCOUNT = "rotated"


@pytest.mark.timeout(120)
async def test_no_call_fails_while_certificates_rotate(cluster: LocalCluster) -> None:
    """New certificates, then a new authority in its three steps; then the old one opens nothing."""
    folder = cluster.certs_folder
    assert folder is not None
    old = folder.parent / "old-certs"
    old.mkdir()
    for file in ("ca.pem", "client.pem", "client.key"):
        (old / file).write_bytes((folder / file).read_bytes())
    calls, before, ended = 0, 0, False

    async def call(client: AsyncClient) -> None:
        nonlocal calls
        while not ended:
            await client.get_account(ACCOUNT)
            calls += 1
            await asyncio.sleep(0.02)

    target = cluster.router_address
    async with (
        AsyncClient(target, certs=folder, deadline_s=DEADLINE_S, direct=False) as through_router,
        AsyncClient(target, certs=folder, deadline_s=DEADLINE_S, direct=True) as direct,
        asyncio.TaskGroup() as group,
    ):
        await direct.create_account(ACCOUNT)
        group.create_task(call(through_router))
        group.create_task(call(direct))
        await asyncio.sleep(BETWEEN_S)
        assert "node-1" in certs.rotate(folder)
        for step in (Step.TRUST, Step.SIGN, Step.FORGET):
            await asyncio.sleep(BETWEEN_S)
            before = calls
            certs.roll(folder, step)
        await asyncio.sleep(BETWEEN_S)
        assert calls > before  # they went on
        ended = True
    print(f"{calls} calls, none failed")
    async with AsyncClient(target, certs=old, deadline_s=2.0, direct=False) as stranger:
        with pytest.raises(Exception, match=r".") as refused:
            await stranger.get_account(ACCOUNT)
        assert "UNAVAILABLE" in repr(refused.value) or "Unavailable" in type(refused.value).__name__
