"""A certificate that is limited to accounts: at every call, on both ports, directly and in streams
and batches, it gets at those and at no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import message_factory

from hostile_calls import Filling
from mailraft.client import AsyncClient
from mailraft.client.ids import request_ids
from mailraft.cluster import certs
from mailraft.cluster.errors import CertificateError
from mailraft.v1 import account_pb2, batch_pb2, change_pb2, delivery_pb2, error_pb2
from mailraft.wire import errors
from mailraft.wire.access import TABLE, Role
from mailraft.wire.credentials import Credentials, open_channel
from two_ports import Ports, answer, methods, serving

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

OWN, OTHER = "team-ada", "board-ada"
BOTH_PORTS = pytest.mark.parametrize("port", ["node", "router"])
NOT_ALLOWED = error_pb2.ERROR_REASON_ACCOUNT_NOT_ALLOWED
# Calls of a service that are about nobody's account, and open to all.
OPEN = ("/mailraft.v1.ClusterService/", "/grpc.")
REFUSED = ("is limited to other accounts", "is about all accounts")
# Their answers are told part by part.
IN_PARTS = {
    "/mailraft.v1.MessageService/DeliverMessages",
    "/mailraft.v1.BatchService/Execute",
    "/mailraft.v1.MessageService/Watch",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ports(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ports]:
    """A node and a router, two accounts, and a certificate for one of them."""
    async with serving(tmp_path_factory.mktemp("accounts")) as both:
        certs.issue(both.certs, "team", Role.SERVICE, accounts=["team-*", "*@team.example"])
        async with AsyncClient(both.addresses["router"], certs=both.certs, name="client") as all_:
            await all_.create_account(OWN)
            await all_.create_account(OTHER)
        yield both


def filled(kind: Any, account_id: str) -> Iterator[bytes]:
    """Requests of a kind that name an account wherever they can."""
    known: dict[str, str | bytes] = {"account_id": account_id, "request_id": request_ids.next()}
    for choice in range(3):
        yield Filling(b"x", account_id, known, choice).message(kind).SerializeToString()


async def told(ports: Ports, port: str, path: str, kind: Any, account_id: str) -> set[str]:
    """How the limited certificate is answered."""
    found = set()
    shown = Credentials(ports.certs, "team")
    async with open_channel(ports.addresses[port], shown) as channel:
        for request in filled(kind, account_id):
            found.add(await answer(channel, path, within_s=20.0, request=request))
    return found


@BOTH_PORTS
async def test_every_call(ports: Ports, port: str) -> None:
    """All that a service may call: another's account is refused, its own is not."""
    looked_at = 0
    for path, method in methods():
        if Role.SERVICE not in TABLE.get(path, ()) or path in IN_PARTS:
            continue
        fields = method.input_type.fields_by_name
        if path.startswith(OPEN) and "account_id" not in fields:
            continue
        looked_at += 1
        for account_id in (OTHER, "", "Team-ada", "xteam-ada", "ada@team.example.org"):
            answers = await told(ports, port, path, method.input_type, account_id)
            if path.endswith("/UploadBlob"):  # one that begins with a chunk is none
                answers = {each for each in answers if not each.startswith("INVALID_ARGUMENT")}
                assert answers
            for each in answers:
                assert each.startswith("PERMISSION_DENIED"), (path, account_id, each)
                assert any(why in each for why in REFUSED), (path, each)
        all_accounts = path.endswith(("/ListAccounts", "/WatchShard"))
        if not all_accounts and not path.endswith("/UploadBlob"):
            for each in await told(ports, port, path, method.input_type, OWN):
                assert not each.startswith("PERMISSION_DENIED"), (path, each)
    assert looked_at >= 30


def mail(*accounts: str) -> delivery_pb2.Delivery:
    """A small one."""
    return delivery_pb2.Delivery(
        request_id=request_ids.next(),
        content=delivery_pb2.Content(raw=b"Subject: hello\r\n\r\nbody"),
        recipients=[delivery_pb2.Recipient(account_id=each) for each in accounts],
    )


async def call(ports: Ports, port: str, path: str, request: Any, answered: Any) -> Any:
    """The answer to a request with the limited certificate."""
    shown = Credentials(ports.certs, "team")
    async with open_channel(ports.addresses[port], shown) as channel:
        untyped: Any = channel
        raw = await untyped.unary_unary(path)(request.SerializeToString(), timeout=20.0)
    return answered.FromString(raw)


@BOTH_PORTS
async def test_of_a_delivery_each_recipient(ports: Ports, port: str) -> None:
    """Those that are allowed get it, the others are answered in their places, and get nothing."""
    request = delivery_pb2.DeliverMessagesRequest(
        deliveries=[mail(OTHER), mail(OTHER, OWN, "board-2"), mail(), mail(OWN)]
    )
    path = "/mailraft.v1.MessageService/DeliverMessages"
    reply = await call(ports, port, path, request, delivery_pb2.DeliverMessagesResponse)
    reasons = [[each.reason for each in result.recipients] for result in reply.results]
    assert reasons == [[NOT_ALLOWED], [NOT_ALLOWED, 0, NOT_ALLOWED], [], [0]]
    del request.deliveries[1:]
    reply = await call(ports, port, path, request, delivery_pb2.DeliverMessagesResponse)
    assert [each.reason for each in reply.results[0].recipients] == [NOT_ALLOWED]
    async with AsyncClient(ports.addresses["router"], certs=ports.certs, name="client") as all_:
        assert not (await all_.list_messages(OTHER)).messages
    assert "board" not in (ports.folder / f"{port}.audit.jsonl").read_text()
    assert ports.audited(port)[-1]["caller"] == "service/team"


@BOTH_PORTS
async def test_of_a_batch_each_item(ports: Ports, port: str) -> None:
    """Whatever an item asks for."""
    field = batch_pb2.BatchItem.DESCRIPTOR.oneofs_by_name["request"].fields
    for account_id in (OTHER, OWN):
        request = batch_pb2.ExecuteRequest()
        for each in field:
            assert each.message_type is not None
            kind = message_factory.GetMessageClass(each.message_type)
            inner = kind.FromString(next(filled(each.message_type, account_id)))
            getattr(request.items.add(), each.name).CopyFrom(inner)
            own = account_pb2.GetAccountRequest(account_id=OWN)
            request.items.add(get_account=own)
        path = "/mailraft.v1.BatchService/Execute"
        reply = await call(ports, port, path, request, batch_pb2.ExecuteResponse)
        found = [errors.from_status(each.error).reason for each in reply.results]
        assert len(found) == 2 * len(field)
        if account_id == OTHER:
            assert set(found[0::2]) == {NOT_ALLOWED}
            assert not any(found[1::2])
        else:
            assert NOT_ALLOWED not in found


@BOTH_PORTS
async def test_of_a_watch_each_account(ports: Ports, port: str) -> None:
    """A subscription to another's account ends, the stream goes on with those that are allowed."""
    shown = Credentials(ports.certs, "team")
    async with open_channel(ports.addresses[port], shown) as channel:
        untyped: Any = channel
        stream = untyped.stream_stream("/mailraft.v1.MessageService/Watch")(timeout=20.0)
        for account_id in (OTHER, OWN):
            subscribe = change_pb2.WatchSubscribe()
            request = change_pb2.WatchRequest(account_id=account_id, subscribe=subscribe)
            await stream.write(request.SerializeToString())
        found: dict[str, change_pb2.WatchResponse] = {}
        while len(found) < 2:
            response = change_pb2.WatchResponse.FromString(await stream.read())
            found[response.account_id] = response
        stream.cancel()
    assert found[OTHER].end.reason == NOT_ALLOWED
    assert found[OWN].change.subscribed


async def test_an_upload_and_a_client_of_ours(ports: Ports) -> None:
    """Through the router and directly: reads that a client joins do not spoil each other."""
    large = b"Subject: large\r\n\r\n".ljust(2_000_000, b"x")
    for direct in (True, False):
        async with AsyncClient(
            ports.addresses["router"], certs=ports.certs, name="team", direct=direct
        ) as team:
            await team.deliver(large, to=[OWN])
            with pytest.raises(errors.AccountNotAllowedError):
                await team.append(OTHER, [large])
            told = await asyncio.gather(
                *(team.get_account(each) for each in (OTHER, OWN) * 8), return_exceptions=True
            )
            assert all(isinstance(each, errors.AccountNotAllowedError) for each in told[0::2])
            assert not any(isinstance(each, BaseException) for each in told[1::2])


async def test_only_a_service_is_limited(ports: Ports) -> None:
    """A pattern that makes no sense, or in a certificate of another role, gives no certificate."""
    for accounts in (["a*b*"], [""], ["x" * 256]):
        with pytest.raises(CertificateError):
            certs.issue(ports.certs, "strange", Role.SERVICE, accounts=accounts)
    with pytest.raises(CertificateError):
        certs.issue(ports.certs, "strange", Role.OPERATOR, accounts=["team-*"])
    assert certs.rotate(ports.certs)
    limited = {each.name: each.accounts for each in certs.inspect(ports.certs)}
    assert limited["team"] == ("team-*", "*@team.example")
    assert limited["client"] == ()
