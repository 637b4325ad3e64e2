"""What is logged, whatever goes wrong: no word of a mail, and of an account a keyed hash only."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from mailraft.client import AsyncClient
from mailraft.cluster import logs, ports
from mailraft.cluster.levels import LogLevel
from mailraft.node.services.blobs import Blobs
from mailraft.router import service
from mailraft.v1 import search_pb2
from mailraft.wire import errors
from mailraft.wire.credentials import Insecure
from mailraft.wire.observed import pseudonym
from three_nodes import Nodes, until

KEY = b"sixteen bytes or more"
ACCOUNT, ABSENT, OTHER = "ada.lovelace@example.org", "nobody.here@example.org", "ch.babbage"
# Each in a place of its own; each must be nowhere in the log.
SECRETS = {
    "subject": "quarterlyfigures",
    "body": "thepasswordisxyzzy",
    "sender": "sender.of.it@example.net",
    "mailbox": "Lettersfrommother",
    "keyword": "$privatekeyword",
    "attribute": "passportnumber9937",
    "looked for": "whatsomebodylooksfor",
}
RAW = (
    f"From: {SECRETS['sender']}\r\nTo: {ACCOUNT}\r\nSubject: {SECRETS['subject']}\r\n\r\n"
    f"{SECRETS['body']}\r\n"
).encode()


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """Everything that processes log, as they do, down to debug."""
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    level = root.level
    path = tmp_path / "all.log"
    with path.open("w", encoding="utf-8", buffering=1) as stream:
        logs.configure(LogLevel.DEBUG, "json", stream=stream, account_key=KEY)
        yield path
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.mark.timeout(120)
async def test_logs_tell_nothing_of_mail(
    log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every call slow, refusals of all kinds, a bug within, a lost leader, and a router."""
    monkeypatch.setattr("mailraft.wire.slow_log.LINES_PER_S_MAX", 10_000)
    nodes = Nodes(tmp_path / "nodes", slow_call_ms=1)
    for number in (1, 2, 3):
        await nodes.start(number)
    await until(lambda: nodes.leader != 0)
    address = f"{ports.LOOPBACK}:{ports.choose(1)[0]}"
    router = await service.serve(
        nodes.map, Insecure(), address, registry=CollectorRegistry(), slow_call_ms=1
    )
    try:
        for direct in (False, True):
            async with AsyncClient(address, insecure=True, direct=direct, deadline_s=20.0) as mail:
                await _use(mail, again=direct)
        async with AsyncClient(address, insecure=True, deadline_s=20.0) as mail:
            with monkeypatch.context() as broken:
                broken.setattr(Blobs, "_find", _bug)
                with pytest.raises(errors.InternalError):
                    await mail.fetch_body(ACCOUNT, "0" * 32)
            with monkeypatch.context() as broken:
                broken.setattr(service, "check_account", _bug_of_the_router)
                async with AsyncClient(address, insecure=True, direct=False) as routed:
                    with pytest.raises(errors.InternalError):
                        await routed.get_account(ACCOUNT)
            await nodes.stop(nodes.leader)
            await until(lambda: nodes.leader != 0)
            await mail.deliver(RAW, to=[ACCOUNT])
    finally:
        await router.stop(drain_s=0, grace_s=0.1)
        for number in list(nodes.running):
            await nodes.stop(number)
    _judge(log_file.read_text("utf-8"))  # noqa: ASYNC240  # nothing else runs any more


def _judge(text: str) -> None:
    for what, secret in {**SECRETS, "account": ACCOUNT, "a": ABSENT, "b": OTHER}.items():
        assert secret.lower() not in text.lower(), what
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    incidents = [str(each["event"]) for each in lines if "incident" in str(each["event"])]
    assert any("AccountService/GetAccount" in each for each in incidents), "of the router"
    assert any("BlobService.GetBlob" in each for each in incidents), "of a node"
    slow = [each for each in lines if each["event"] == "slow call"]
    assert len({each["method"] for each in slow}) >= 5
    assert pseudonym(ACCOUNT, KEY) in {each.get("account") for each in slow}


async def _use(mail: AsyncClient, *, again: bool) -> None:
    """What a day brings, and its mistakes."""
    if not again:
        for account in (ACCOUNT, OTHER):
            await mail.create_account(account, attributes={"note": SECRETS["attribute"]})
        await mail.create_mailbox(ACCOUNT, SECRETS["mailbox"])
    with pytest.raises(errors.AccountExistsError):
        await mail.create_account(ACCOUNT)
    with pytest.raises(errors.MailboxExistsError):
        await mail.create_mailbox(ACCOUNT, SECRETS["mailbox"])
    receipt = await mail.deliver(RAW, to=[ACCOUNT, OTHER, ABSENT], keywords=[SECRETS["keyword"]])
    assert list(receipt.failed) == [ABSENT]
    with pytest.raises(errors.AccountNotFoundError):
        await mail.get_account(ABSENT)
    page = await mail.list_messages(ACCOUNT)
    assert await mail.fetch_body(ACCOUNT, page.messages[0].id) == RAW
    only = search_pb2.MessageFilter(text=search_pb2.TextMatch(value=SECRETS["looked for"]))
    await mail.search_messages(ACCOUNT, only)
    with pytest.raises(errors.MailraftError):
        await mail.list_messages(ACCOUNT, SECRETS["mailbox"])  # no id
    with pytest.raises(errors.MailraftError):
        await mail.list_messages(ACCOUNT, page_token=SECRETS["looked for"])


def _bug_of_the_router(*_: object) -> None:
    raise RuntimeError(f"{ACCOUNT}: {SECRETS['body']}")


async def _bug(*_: object) -> None:
    raise RuntimeError(f"{ACCOUNT}: {SECRETS['body']}")
