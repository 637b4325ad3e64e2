"""Mail that goes in, out and in again, by the commands: `make roundtrip CORPUS=folder` for more."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mailraft.client import AsyncClient
from mailraft.cluster.corpus import default_path
from mailraft.cluster.local import LocalCluster
from mailraft.cluster.mail_sources import Source
from mailraft.wire.limits import UPLOAD_MAX_BYTES

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(900)]

CORPUS = Path(os.environ.get("MAILRAFT_ROUNDTRIP_CORPUS") or default_path())
COMMAND_DEADLINE_S = 600.0
FETCHES = 16  # at the same time
# Exit status of an import that skipped something, and said so.
SKIPPED = 1


class Commands:
    """`mailraft mail` against a cluster."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._where = ("--server", cluster.router_address, "--certs", str(cluster.certs_folder))

    async def run(self, *arguments: str, may_skip: bool = False) -> dict[str, object]:
        """What a command tells."""
        return await asyncio.to_thread(self._run, arguments, may_skip)

    def _run(self, arguments: tuple[str, ...], may_skip: bool) -> dict[str, object]:
        done = subprocess.run(
            (
                *(sys.executable, "-P", "-m", "mailraft.cluster.cli", "mail"),
                *(*arguments, "-o", "json", *self._where),
            ),
            check=False,
            capture_output=True,
            timeout=COMMAND_DEADLINE_S,
        )
        allowed = (0, SKIPPED) if may_skip else (0,)
        assert done.returncode in allowed, done.stderr.decode()
        # With something skipped an error follows what was done.
        answer: dict[str, object]
        answer, _ = json.JSONDecoder().raw_decode(done.stdout.decode())
        return answer


async def digests(client: AsyncClient, account: str) -> list[str]:
    """SHA-256 of each message's bytes, as they are fetched, in the order of the UIDs."""
    ids = [each.id async for each in client.iter_messages(account, page_size=500)]
    found: list[str] = []
    for start in range(0, len(ids), FETCHES):
        group = ids[start : start + FETCHES]
        raws = await asyncio.gather(*(client.fetch_body(account, one) for one in group))
        found += [hashlib.sha256(raw).hexdigest() for raw in raws]
    return found


async def test_what_goes_out_and_in_again_is_the_same(
    cluster: LocalCluster, client: AsyncClient, tmp_path: Path
) -> None:
    """Every message of the corpus: imported, exported as mbox and as Maildir, and each imported
    again, has the bytes that it had in its file, and their order. What is skipped is told.
    """
    records = list(Source(CORPUS, UPLOAD_MAX_BYTES))
    expected = [hashlib.sha256(each.raw).hexdigest() for each in records if not each.problem]
    problems = [each for each in records if each.problem]
    mail = Commands(cluster)
    began_s = time.monotonic()
    state = ("--state", str(tmp_path / "first.state"))
    told = await mail.run("import", "first", str(CORPUS), "--create", *state, may_skip=True)
    skipped = told["skipped"]
    assert isinstance(skipped, list)
    assert (told["imported"], len(skipped)) == (len(expected), len(problems))
    assert await digests(client, "first") == expected
    print(f"\n{told['imported']} imported, {len(skipped)} skipped: {_since(began_s)}")
    for format_ in ("mbox", "maildir"):
        began_s = time.monotonic()
        out = str(tmp_path / format_)
        told = await mail.run("export", "first", out, "--format", format_)
        assert (told["exported"], told["skipped"]) == (len(expected), [])
        print(f"{told['exported']} exported as {format_}: {_since(began_s)}")
        began_s = time.monotonic()
        state = ("--state", str(tmp_path / f"{format_}.state"))
        told = await mail.run("import", f"from-{format_}", out, "--create", *state)
        assert (told["imported"], told["skipped"]) == (len(expected), [])
        assert await digests(client, f"from-{format_}") == expected
        print(f"{told['imported']} imported from {format_}, bytes equal: {_since(began_s)}")


def _since(began_s: float) -> str:
    return f"{time.monotonic() - began_s:.1f} s"
