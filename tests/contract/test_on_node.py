"""The model of test_model.py against a whole node over gRPC, and what only callers are told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from grpc_driver import GrpcDriver
from grpc_machine import GrpcMachine
from mailbox_driver import (
    Append,
    CreateAccount,
    Deliver,
    Delivered,
    Done,
    Expunge,
    Item,
    ModifyKeywords,
    Refusal,
    To,
    Which,
)
from one_node import OneNode

pytestmark = pytest.mark.timeout(300)


class _Unaudited(GrpcDriver):
    """Counting all of a node anew after each step takes longer than the steps."""

    def audit(self) -> None:
        """Done once, at the end."""


class NodeMachine(GrpcMachine):
    """A driver of its own for each example, on a node for all."""

    server: OneNode

    def make(self) -> GrpcDriver:
        return self.server.driver(_Unaudited)

    def teardown(self) -> None:
        """Everything that is counted equals a full scan."""
        self.server.audit()


TestMailModelOnNode = NodeMachine.TestCase
TestMailModelOnNode.settings = settings(
    max_examples=10,
    stateful_step_count=40,
    deadline=None,
    # What fails on the machine too is made small there, in a hundredth of the time.
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(autouse=True, scope="module")
def serve(node: OneNode) -> Iterator[None]:
    """Hypothesis makes its machines itself."""
    NodeMachine.server = node
    yield
    del NodeMachine.server


@pytest.fixture
def mail(node: OneNode) -> GrpcDriver:
    """Accounts of its own on the node."""
    return node.driver()


def test_fetched_bytes_are_the_appended_bytes(mail: GrpcDriver, alice: str) -> None:
    """Byte for byte over the wire: NUL, 8 bit, bare LF and CR, incompressible, long."""
    raws = [b"\0", b"a\nb\r\nc\r", bytes(range(256)) * 40, b"x" * 1_000_000]
    (done,) = mail.run(Append(alice, tuple(map(Item, raws))))
    assert isinstance(done, Done)
    assert [mail.fetch(alice, one.blob) for one in done.stored] == raws


def test_a_delivery_answers_for_each_recipient(mail: GrpcDriver, alice: str) -> None:
    """One recipient's refusal takes nothing from another; the answers come in the order asked."""
    mail.run(CreateAccount("bob", quota_bytes=3), CreateAccount("carol"))
    to = (To("nobody"), To(alice), To("bob"), To("carol", ("99",)))
    (outcome,) = mail.run(Deliver(b"12345", to))
    assert isinstance(outcome, Delivered)
    assert outcome.each[0] == Refusal("ACCOUNT_NOT_FOUND")
    assert isinstance(outcome.each[1], Done)
    assert outcome.each[2:] == (Refusal("OVER_QUOTA"), Refusal("MAILBOX_NOT_FOUND"))
    mail.audit()


def test_quota_is_exact(mail: GrpcDriver) -> None:
    """The last byte and the last message fit; one more is refused and uses nothing."""
    mail.run(CreateAccount("small", quota_bytes=10, quota_messages=3))
    fits, over, rest, full = mail.run(
        Append("small", (Item(b"12345"), Item(b"123"))),
        Append("small", (Item(b"123"),)),
        Append("small", (Item(b"1"),)),
        Append("small", (Item(b"1"),)),
    )
    assert isinstance(fits, Done)
    assert isinstance(rest, Done)
    assert over == full == Refusal("OVER_QUOTA")
    mail.audit()


def test_each_object_is_told_once(mail: GrpcDriver, alice: str) -> None:
    """However often it changed: a message that came and went is not told as created."""
    mail.run(
        Append(alice, (Item(b"one"), Item(b"two"))),
        ModifyKeywords(alice, Which(("1",)), add=("x",)),
        Expunge(alice, Which(("2",))),
        ModifyKeywords(alice, Which(("1",)), add=("y",)),
    )
    told = [each for page in mail.changes(alice) for each in page.changes]
    messages = [each for each in told if each[0] == "message" and each[1] == "created"]
    assert messages == [("message", "created", "1")]
