"""AsyncClient against a store in a dict, behind a real gRPC server."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from tests.unit.test_client_fake import CHUNK, INBOX_ID, MAIL, NOISE, FakeStore, serving

from mailraft.client import (
    Ack,
    AsyncClient,
    Consistency,
    IntegrityError,
    LevelNotMetError,
    MessageOrder,
    NewMessage,
    Recipient,
    Session,
    errors,
)
from mailraft.v1 import common_pb2
from mailraft.wire import limits, slots


@pytest.fixture
async def store() -> AsyncIterator[FakeStore]:
    """A store that is served."""
    async with serving(FakeStore()) as running:
        yield running


@pytest.fixture(params=[True, False], ids=["direct", "through the router"])
async def mail(request: pytest.FixtureRequest, store: FakeStore) -> AsyncIterator[AsyncClient]:
    """A client of the store, in which alice has an account."""
    async with AsyncClient(store.address, insecure=True, direct=request.param) as client:
        await client.create_account("alice")
        yield client


async def test_the_ten_line_example(store: FakeStore) -> None:
    """What README shows works as it is shown."""
    async with AsyncClient(store.address, insecure=True) as mail:
        await mail.create_account("alice")
        receipt = await mail.deliver(MAIL, to=["alice"])
        page = await mail.list_messages("alice", "INBOX", page_size=50)
        body = await mail.fetch_body("alice", page.messages[0].id)
    assert body == MAIL
    assert receipt.recipients[0].message_id == page.messages[0].id


async def test_an_account_is_created_read_and_changed(mail: AsyncClient) -> None:
    """Quota and attributes are what was asked; an update leaves alone what it does not name."""
    made = await mail.create_account("bob", max_bytes=1000, attributes={"plan": "free"})
    assert (made.account_id, made.quota.max_bytes, made.attributes["plan"]) == ("bob", 1000, "free")
    await mail.update_account("bob", max_messages=7, undelete_window_ms=5)
    found = await mail.get_account("bob")
    assert (found.quota.max_bytes, found.quota.max_messages) == (1000, 7)
    assert (found.undelete_window_ms, dict(found.attributes)) == (5, {"plan": "free"})


async def test_errors_are_exceptions_by_reason(mail: AsyncClient) -> None:
    """Each reason of the store is its own class, below the class of its code."""
    with pytest.raises(errors.AccountExistsError):
        await mail.create_account("alice")
    with pytest.raises(errors.AccountNotFoundError, match="no account 'nobody'"):
        await mail.get_account("nobody")
    with pytest.raises(errors.NotFoundError):
        await mail.get_message("alice", "M0")
    with pytest.raises(errors.MessageTooLargeError):
        await mail.deliver(bytes(limits.UPLOAD_MAX_BYTES + 1), to=["alice"])


async def test_accounts_are_listed_over_pages(mail: AsyncClient) -> None:
    """list_accounts goes through all pages by itself."""
    for name in ("bob", "carol"):
        await mail.create_account(name)
    found = [account.account_id async for account in mail.list_accounts(page_size=2)]
    assert found == ["alice", "bob", "carol"]


async def test_mailboxes_are_named_by_id_or_role(mail: AsyncClient) -> None:
    """INBOX in any case is the role; everything else is an id, never a name."""
    made = await mail.create_mailbox("alice", "Work", subscribed=True)
    assert [each.name for each in await mail.list_mailboxes("alice")] == ["INBOX", "Work"]
    assert (await mail.get_mailbox("alice", made.id)).subscribed
    assert (await mail.get_mailbox("alice", "inbox")).id == INBOX_ID
    with pytest.raises(errors.MailboxNotFoundError):
        await mail.get_mailbox("alice", "Work")
    await mail.deliver(MAIL, to=[Recipient("alice", mailboxes=[made.id], keywords=["$seen"])])
    assert (await mail.list_messages("alice")).messages == []
    (message,) = (await mail.list_messages("alice", made.id)).messages
    assert message.keywords == ["$seen"]


async def test_each_recipient_has_its_own_outcome(mail: AsyncClient) -> None:
    """With several recipients a failure of one is told, not raised; with one it is raised."""
    receipt = await mail.deliver(MAIL, to=["alice", "nobody"], keywords=["$todo"])
    assert receipt.recipients[0].message_id
    assert isinstance(receipt.failed["nobody"], errors.AccountNotFoundError)
    with pytest.raises(errors.AccountNotFoundError):
        receipt.raise_for_failures()
    with pytest.raises(errors.AccountNotFoundError):
        await mail.deliver(MAIL, to=["nobody"])
    with pytest.raises(TypeError, match="list of recipients"):
        await mail.deliver(MAIL, to="alice")


async def test_calls_of_one_time_travel_together(mail: AsyncClient, store: FakeStore) -> None:
    """Concurrent deliveries and reads take far fewer gRPC calls than there are of them."""
    store.calls.clear()
    await asyncio.gather(*(mail.deliver(MAIL, to=["alice"]) for _ in range(300)))
    await asyncio.gather(*(mail.get_account("alice") for _ in range(300)))
    counts = Counter(method for method, _ in store.calls)
    assert counts["DeliverMessages"] < 30
    assert counts["Execute"] < 30
    assert len(store.accounts["alice"].messages) == len(store.asked("deliver")) == 300


async def test_an_unknown_commit_is_retried_under_its_request_id(
    mail: AsyncClient, store: FakeStore
) -> None:
    """A write whose fate is unknown is sent again, and takes effect once."""
    store.failures["deliver"] = [errors.CommitUnknownError(), errors.NoLeaderError()]
    receipt = await mail.deliver(MAIL, to=["alice"])
    assert {each.request_id for each in store.asked("deliver")} == {receipt.request_id}
    assert len(store.asked("deliver")) == 3
    assert list(store.accounts["alice"].messages) == [receipt.recipients[0].message_id]
    store.failures["CreateMailbox"] = [errors.CommitUnknownError()]
    await mail.create_mailbox("alice", "Work")
    first, second = store.asked("CreateMailbox")
    assert first.request_id == second.request_id


async def test_a_level_that_is_not_met_is_raised_with_the_result(
    mail: AsyncClient, store: FakeStore
) -> None:
    """The write is done; LevelNotMetError tells what it would have returned."""
    store.level_met = common_pb2.LEVEL_MET_NO
    with pytest.raises(LevelNotMetError) as raised:
        await mail.deliver(MAIL, to=["alice"], ack=Ack.ALL)
    assert raised.value.result.recipients[0].message_id in store.accounts["alice"].messages
    with pytest.raises(LevelNotMetError) as raised:
        await mail.create_mailbox("alice", "Work", ack=Ack.REPLICAS, replicas=3)
    assert raised.value.result.name == "Work"
    request = store.asked("CreateMailbox")[0]
    assert request.write_options.ack == common_pb2.ACK_LEVEL_REPLICAS
    assert request.write_options.replicas == 3


async def test_reads_show_what_the_session_wrote(mail: AsyncClient, store: FakeStore) -> None:
    """A read asks for at least the state of the last write or read, unless it says otherwise."""
    receipt = await mail.deliver(MAIL, to=["alice"])
    await mail.get_account("alice")
    asked = store.asked("GetAccount")[-1].read_options
    assert asked.consistency == common_pb2.CONSISTENCY_SESSION
    assert asked.min_state == receipt.recipients[0].state == mail.session.state_of("alice")
    await mail.get_account("alice", consistency=Consistency.LINEARIZABLE, replica=1)
    asked = store.asked("GetAccount")[-1].read_options
    assert (asked.consistency, asked.min_state) == (common_pb2.CONSISTENCY_LINEARIZABLE, "")
    assert asked.require_replica == 1
    other = Session.from_token(mail.session.token)
    async with AsyncClient(store.address, insecure=True, session=other) as second:
        await second.get_account("alice")
    assert store.asked("GetAccount")[-1].read_options.min_state == receipt.recipients[0].state


async def test_a_session_of_a_lost_incarnation_says_so_once(
    mail: AsyncClient, store: FakeStore
) -> None:
    """Where what it wrote is gone, a read fails once and then promises nothing about it."""
    store.refusals["GetAccount"] = [errors.StateTooOldError()]
    with pytest.raises(errors.StateTooOldError):
        await mail.get_account("alice")
    await mail.get_account("alice")
    assert store.asked("GetAccount")[-1].read_options.min_state == ""


async def test_messages_are_appended_listed_and_got(mail: AsyncClient) -> None:
    """Appended messages come back in every order, over pages, and by id."""
    when = datetime(2024, 5, 1, tzinfo=UTC)
    made = await mail.append("alice", [MAIL, NewMessage(b"x", ["$draft"], when)], "INBOX")
    made = [*made, *await mail.append("alice", [b"y"])]
    ids = [each.message_id for each in made]
    assert [each.id async for each in mail.iter_messages("alice", page_size=2)] == ids
    newest = await mail.list_messages("alice", order=MessageOrder.UID_DESC, page_size=1)
    assert [each.id for each in newest.messages] == ids[-1:]
    assert newest.total_messages == 3
    some = await mail.get_messages("alice", [ids[1], "M999"])
    assert ([each.id for each in some.messages], some.not_found_ids) == ([ids[1]], ["M999"])
    assert (await mail.get_message("alice", ids[1])).keywords == ["$draft"]


async def test_bodies_travel_compressed_where_it_helps(store: FakeStore) -> None:
    """compress=True sends a zstd frame, but not where that would be longer."""
    async with AsyncClient(store.address, insecure=True) as mail:
        await mail.create_account("alice")
        await mail.deliver(MAIL, to=["alice"])
        await mail.deliver(NOISE[:1000], to=["alice"])
    async with AsyncClient(store.address, insecure=True, compress=False) as mail:
        await mail.deliver(MAIL, to=["alice"])
    sent = [each.content.WhichOneof("encoding") for each in store.asked("deliver")]
    assert sent == ["zstd", "raw", "raw"]


async def test_bodies_come_back_whole_or_in_part(mail: AsyncClient) -> None:
    """A body of any size and every range of it are the delivered bytes."""
    for raw in (MAIL, NOISE):
        message_id = (await mail.deliver(raw, to=["alice"])).recipients[0].message_id
        assert await mail.fetch_body("alice", message_id) == raw
        assert await mail.fetch_body("alice", message_id, offset=10, length=20) == raw[10:30]
        assert await mail.fetch_body("alice", message_id, offset=5) == raw[5:]
        assert await mail.fetch_body("alice", message_id, offset=5, length=0) == b""
        assert await mail.fetch_body("alice", message_id, offset=len(raw) + 1) == b""
        assert b"".join([part async for part in mail.download("alice", message_id)]) == raw


async def test_an_interrupted_download_goes_on(mail: AsyncClient, store: FakeStore) -> None:
    """What came before its server went away is not asked for again."""
    message_id = (await mail.deliver(NOISE, to=["alice"])).recipients[0].message_id
    store.break_after_chunks = [2, 1]
    assert b"".join([part async for part in mail.download("alice", message_id)]) == NOISE
    assert [each.offset_bytes for each in store.asked("DownloadBlob")] == [0, 2 * CHUNK, 3 * CHUNK]


async def test_damaged_bytes_are_never_returned(mail: AsyncClient, store: FakeStore) -> None:
    """A body that is not what was stored raises IntegrityError, however it came."""
    ids = [
        (await mail.deliver(raw, to=["alice"])).recipients[0].message_id for raw in (MAIL, NOISE)
    ]
    store.damage = lambda data: data[:-1] + b"?"
    for message_id in ids:
        with pytest.raises(IntegrityError):
            await mail.fetch_body("alice", message_id)


async def test_a_call_ends_with_its_deadline(mail: AsyncClient, store: FakeStore) -> None:
    """deadline_s binds a call with all its retries."""
    store.delay_s = 30
    began = asyncio.get_running_loop().time()
    with pytest.raises(errors.MailraftError):
        await mail.get_account("alice", deadline_s=0.3)
    with pytest.raises(errors.MailraftError):
        await mail.deliver(MAIL, to=["alice"], deadline_s=0.3)
    assert asyncio.get_running_loop().time() - began < 3


async def test_a_cancelled_call_leaves_nothing_running(mail: AsyncClient, store: FakeStore) -> None:
    """Neither a task here nor a call there goes on, and the client still works."""
    store.delay_s = 30
    before = len(asyncio.all_tasks())
    call = asyncio.create_task(mail.create_mailbox("alice", "Work"))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    store.delay_s = 0
    await asyncio.sleep(0.1)
    assert store.running <= 1  # the watch of the map
    assert len(asyncio.all_tasks()) <= before
    await mail.get_account("alice")


async def test_another_seed_is_asked_when_one_is_down(store: FakeStore) -> None:
    """One living address among the targets is enough."""
    for direct in (True, False):
        async with AsyncClient(
            ["127.0.0.1:1", store.address], insecure=True, direct=direct
        ) as client:
            assert (await client.capabilities()).cluster_id == "test"


async def test_the_cluster_tells_where_an_account_is(mail: AsyncClient) -> None:
    """What locate and cluster_map say is the same."""
    found = await mail.locate("alice")
    assert found.slot == slots.slot_of("alice")
    assert found.shard.id == (await mail.cluster_map()).shards[0].id


@pytest.mark.parametrize("direct", [True, False])
async def test_first_calls_share_a_connection(store: FakeStore, direct: bool) -> None:
    """In whatever turn of the loop the second one comes while the first still connects."""
    for turns in range(8):
        async with AsyncClient(store.address, insecure=True, direct=direct) as client:
            first = asyncio.create_task(client.capabilities())
            for _ in range(turns):
                await asyncio.sleep(0)
            assert await client.capabilities() == await first


async def test_close_twice_is_close_once(store: FakeStore) -> None:
    """It is idempotent, also before the first call; a closed client refuses."""
    client = AsyncClient(store.address, insecure=True)
    await client.close()
    await client.close()
    with pytest.raises(errors.FailedPreconditionError, match="closed"):
        await client.get_account("alice")


async def test_close_ends_what_runs(store: FakeStore) -> None:
    """Calls under way are ended, not waited for."""
    for direct in (True, False):
        client = AsyncClient(store.address, insecure=True, direct=direct)
        await client.capabilities()
        store.delay_s = 30
        running = [
            asyncio.create_task(client.get_account("alice")),
            asyncio.create_task(client.create_account("alice")),
            asyncio.create_task(client.deliver(MAIL, to=["alice"])),
        ]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(1):
            await client.close()
            results = await asyncio.gather(*running, return_exceptions=True)
        assert all(isinstance(each, errors.MailraftError) for each in results)
        store.delay_s = 0


def test_what_can_never_work_is_refused_at_once() -> None:
    """Neither TLS nor plain text by mistake."""
    with pytest.raises(ValueError, match="insecure"):
        AsyncClient("127.0.0.1:7400")
    with pytest.raises(ValueError, match="target"):
        AsyncClient([], insecure=True)
