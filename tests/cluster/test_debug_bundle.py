"""mailraft debug bundle of a cluster that runs and has mail: nothing of it is in the archive."""

from __future__ import annotations

import base64
import gzip
import json
import re
import tarfile
from email import message_from_bytes
from pathlib import Path

import commands
from mailraft.client import AsyncClient
from mailraft.cluster.local import LocalCluster

CORPUS = Path(__file__).parents[1] / "data"
ACCOUNTS = ("ada.lovelace@example.org", "charles.babbage")
# What mail and this program both say is no sign of anything.
WORD_CHARS_MIN = 12


async def filled(client: AsyncClient) -> set[bytes]:
    """Deliver the corpus; what must be nowhere: accounts, and long words of the mail."""
    words = {account.encode() for account in ACCOUNTS}
    for account in ACCOUNTS:
        await client.create_account(account)
    for path in sorted(CORPUS.glob("*.eml")):
        raw = path.read_bytes()
        await client.deliver(raw, to=list(ACCOUNTS))
        subject = str(message_from_bytes(raw)["subject"] or "").encode()
        words |= {subject} if len(subject) >= WORD_CHARS_MIN else set()
        words |= set(re.findall(rb"[\w.+/=-]{%d,60}" % WORD_CHARS_MIN, raw)[:50])
    return words


def known_words() -> bytes:
    """Of this program and its surroundings: method names, header names, metrics."""
    root = Path(__file__).parents[2]
    code = b"".join(
        path.read_bytes()
        for room in ("node", "router", "client", "cluster", "proto")
        for path in (root / room).rglob("*.py")
    )
    return code.lower()


async def test_nothing_of_mail_accounts_or_keys_is_in_it(
    cluster: LocalCluster, client: AsyncClient, tmp_path: Path
) -> None:
    """Neither as it is nor in base64; but what helpers need is."""
    program = known_words()
    words = {word for word in await filled(client) if word.lower() not in program}
    assert len(words) > 100, "void"
    await commands.run("rebalance", "plan", *commands.where(cluster))  # which is audited
    path = tmp_path / "bundle.tar.gz"
    # From the folder that the cluster's is in, as an operator would.
    home = cluster.folder.parent / "home"
    home.mkdir()
    (home / ".mailraft").symlink_to(cluster.folder)
    for redact in ("--redact", "--no-redact"):
        path.unlink(missing_ok=True)
        print(await commands.run("debug", "bundle", str(path), redact, folder=home))
        content = gzip.decompress(path.read_bytes())
        found = [word for word in words if word in content or base64.b64encode(word) in content]
        assert not found, found
        assert b"PRIVATE KEY" not in content
        assert cluster.certs_folder is not None
        for key in [*cluster.certs_folder.glob("*.key"), *cluster.certs_folder.glob("*.pem")]:
            secret = key.read_text().splitlines()[1].encode()
            assert secret not in content, key
        with tarfile.open(path) as archive:
            folder = archive.getnames()[0].partition("/")[0]
            names = {each.partition("/")[2] for each in archive.getnames()}
            status = archive.extractfile(f"{folder}/status.json")
            assert status is not None
            told = json.load(status)
        assert {"versions.json", "status.json", "settings.json", "map.json"} <= names
        for process in ("n1", "n2", "n3", "router"):
            assert f"configuration/{process}.json" in names
            assert f"logs/{process}.log" in names
            assert f"metrics/{process}.txt" in names
        assert any(each.startswith("audit/") for each in names)
        assert len(told["nodes"]) == 3
        assert told["nodes"][0]["version"]
