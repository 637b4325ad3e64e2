"""docs/runbooks/disk-replaced.md: a node starts on an empty disk while mail goes on."""

from __future__ import annotations

import pytest
from tests.runbooks.conftest import Site
from tests.runbooks.mailing import check, delivered, more

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(300)]

PERF = "mailraft check perf --folder /var/lib/mailraft/node-2"


async def test_by_the_book(site: Site) -> None:
    """The node ends up with everything, and nothing is lost meanwhile."""
    cluster = site.cluster
    async with cluster.client(deadline_s=30) as client:
        kept = await delivered(client)
        cluster.kill(2)
        await site.until_silent(2)
        rehearsal = site.rehearsal()
        # It is killed already, as a disk that died does; and this disk here may be slow.
        loose = {"mailraft alarm list": 1, "mailraft node list": 0, PERF: None}
        async for step in rehearsal.run("disk-replaced", expect=loose):
            if "start" in step.command:
                await more(client, kept)
        await check(client, kept)
    assert (cluster.data_folder(2).parent / "data.broken").is_dir()
