"""A short part of row 14 (tests/faults/test_hostile.py has all of it), and that it would see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from hostile_storm import Storm, Targets
from mailraft.client import AsyncClient
from mailraft.wire import guard
from two_ports import Ports, serving

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

CALLS = 2_000
ACCOUNTS = ("ada", "bob")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ports(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ports]:
    """A node and a router with two accounts."""
    async with serving(tmp_path_factory.mktemp("hostile")) as both:
        async with client(both) as everybody:
            for account_id in ACCOUNTS:
                await everybody.create_account(account_id)
        yield both


def client(ports: Ports) -> AsyncClient:
    """Who means well."""
    return AsyncClient(ports.addresses["router"], certs=ports.certs, name="client")


def targets(ports: Ports) -> Targets:
    """Both ports."""
    return Targets(ports.addresses, [], ports.certs, "nobody's", ACCOUNTS)


async def test_everything_is_answered_clearly(
    ports: Ports, caplog: pytest.LogCaptureFixture
) -> None:
    """No handler falls over, and who means well is served afterwards."""
    async with Storm(targets(ports), seed=1) as storm:
        tally = await storm.run(CALLS)
    print(tally)
    assert tally.unclear == []
    assert [each.message for each in caplog.records if "incident" in each.message] == []
    raw = b"Subject: after the storm\r\n\r\n"
    async with client(ports) as everybody:
        await everybody.create_account("calm")
        receipt = await everybody.deliver(raw, to=["calm"])
        assert await everybody.fetch_body("calm", receipt.recipients[0].message_id) == raw


async def test_a_handler_that_falls_over_would_be_seen(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one check taken out: what cannot be parsed is no clear answer any more."""

    def unchecked(method: Any, raw: bytes) -> Any:
        return method.handler.request_deserializer(raw)

    monkeypatch.setattr(guard._Method, "parsed", unchecked)
    async with Storm(targets(ports), seed=1) as storm:
        tally = await storm.run(200)
    assert tally.unclear
