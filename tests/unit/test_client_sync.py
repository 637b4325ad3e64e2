"""Client, the synchronous twin, against the same store; and that it is the twin."""

import asyncio
import inspect
from collections.abc import AsyncIterator

import pytest
from tests.unit.test_client_fake import MAIL, NOISE, FakeStore, serving

import gen_sync_client
from mailraft.client import AsyncClient, Client, errors


@pytest.fixture
async def store() -> AsyncIterator[FakeStore]:
    """A store that is served."""
    async with serving(FakeStore()) as running:
        yield running


@pytest.mark.parametrize("direct", [True, False])
async def test_the_twin_does_the_same(store: FakeStore, direct: bool) -> None:
    """Client, in a thread, does what AsyncClient does, retries included."""

    def scenario() -> None:
        with Client(["127.0.0.1:1", store.address], insecure=True, direct=direct) as mail:
            mail.create_account("alice")
            store.failures["deliver"] = [errors.CommitUnknownError()]
            receipt = mail.deliver(MAIL, to=["alice", "nobody"])
            assert list(receipt.failed) == ["nobody"]
            message_id = receipt.recipients[0].message_id
            assert [each.id for each in mail.iter_messages("alice")] == [message_id]
            assert mail.fetch_body("alice", message_id) == MAIL
            large = mail.append("alice", [NOISE])[0].message_id
            store.break_after_chunks = [2]
            assert b"".join(mail.download("alice", large)) == NOISE
            assert [each.account_id for each in mail.list_accounts()] == ["alice"]
            with pytest.raises(errors.AccountExistsError):
                mail.create_account("alice")
            store.delay_s = 30
            with pytest.raises(errors.MailraftError):
                mail.get_account("alice", deadline_s=0.2)
        with pytest.raises(errors.FailedPreconditionError, match="closed"):
            mail.get_account("alice")

    await asyncio.to_thread(scenario)
    deliveries = store.asked("deliver")
    assert len({each.request_id for each in deliveries}) == 1
    assert len(store.accounts["alice"].messages) == 2


async def test_the_twin_finds_a_new_leader(store: FakeStore) -> None:
    """A node that does not lead names who does, and is believed."""
    async with serving(FakeStore()) as follower:
        follower.leader_address = store.address

        def scenario() -> str:
            with Client(follower.address, insecure=True) as mail:
                mail.create_account("alice")
                return mail.deliver(MAIL, to=["alice"]).recipients[0].message_id

        assert await asyncio.to_thread(scenario) in store.accounts["alice"].messages


async def test_close_ends_what_other_threads_wait_for(store: FakeStore) -> None:
    """A call under way in another thread ends with the client."""
    with Client(store.address, insecure=True) as mail:
        await asyncio.to_thread(mail.create_account, "alice")
        store.delay_s = 30
        call = asyncio.create_task(asyncio.to_thread(mail.get_account, "alice"))
        await asyncio.sleep(0.1)
    async with asyncio.timeout(1):
        with pytest.raises(errors.FailedPreconditionError, match="closed"):
            await call


def test_the_twins_have_one_face() -> None:
    """Public methods and their signatures are equal, but for what makes one of them async."""

    def face(kind: type) -> dict[str, str]:
        members = inspect.getmembers(kind, inspect.isfunction)
        public = {name: str(inspect.signature(what)) for name, what in members if name[0] != "_"}
        public["__init__"] = str(inspect.signature(kind))
        return {
            name: text.replace("AsyncGenerator", "Generator").replace(", None, None]", ", None]")
            for name, text in public.items()
        }

    assert face(AsyncClient) == face(Client)


def test_the_twin_is_as_generated() -> None:
    """client/sync_client.py is what tools/gen_sync_client.py makes of the source."""
    assert gen_sync_client.main(["--check"]) == 0


def test_a_source_that_outgrew_its_replacements_is_refused() -> None:
    """What the generator cannot turn into plain calls stops it."""
    source = gen_sync_client.SOURCE.read_text("utf-8")
    with pytest.raises(SystemExit, match="aclosing"):
        gen_sync_client.generate(source.replace("aclosing", "closing"))
    with pytest.raises(SystemExit, match="async"):
        gen_sync_client.generate(source + "x = 'async'\n")
