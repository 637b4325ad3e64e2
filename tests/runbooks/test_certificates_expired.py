"""docs/runbooks/certificates-expired.md: all of them at once, and then the authority too."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from tests.runbooks.conftest import Site
from tests.runbooks.mailing import check, delivered, more

from mailraft.cluster import certs
from mailraft.wire.access import role_of

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(300)]

LAST_S = 6.0


async def expired(site: Site) -> None:
    """Every certificate is one that has just ended, on the operator's machine and on all hosts."""
    folder = site.desk / "certs"
    for each in certs.inspect(folder):
        role = role_of(each.role)
        if role is not None:
            certs.issue(folder, each.name, role, lasts=dt.timedelta(seconds=LAST_S))
    await asyncio.sleep(LAST_S)
    site.hand_out()


async def test_by_the_book(site: Site) -> None:
    """Commands fail, a restarted node stays alone; with new certificates nobody is restarted; with
    a new authority everybody is, and all mail is there.
    """
    cluster = site.cluster
    async with cluster.client(deadline_s=30) as client:
        kept = await delivered(client, accounts=3)
    await expired(site)
    cluster.kill(2)
    cluster.start(2)
    pids = [cluster.pid_of(node) for node in cluster.nodes]
    await site.mailraft("check", "health", expect=3)
    async for step in site.rehearsal().run("certificates-expired"):
        if step.command.startswith("until") and pids:
            assert pids == [cluster.pid_of(node) for node in cluster.nodes], "none was restarted"
            pids = []
            async with site.client() as client:
                await check(client, kept)
                await more(client, kept)
            await expired(site)
            (site.desk / "certs" / "ca.key").unlink()
            await site.mailraft("check", "health", expect=3)
    async with site.client() as client:
        await check(client, kept)
        await more(client, kept)
