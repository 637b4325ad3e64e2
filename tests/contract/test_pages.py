"""Listing a mailbox: orders, both ways, and pages that stay valid while mail arrives."""

import dataclasses

import pytest

from apply_driver import ApplyDriver
from mailbox_driver import Append, CreateAccount, CreateMailbox, Deliver, Driver, Item, To
from mailraft.node.mailstore import queries
from mailraft.node.mailstore.errors import Refused
from mailraft.v1 import error_pb2

# Tests that ask for `store` look at the queries themselves, below what a Driver shows.
TIMES_MS = [50, 10, 30, 10, -5, 40, 20]


@pytest.fixture(autouse=True)
def seven(mail: Driver, alice: str) -> None:
    """Seven messages whose received times are not in UID order; one beside them elsewhere."""
    mail.run(
        CreateMailbox(alice, "Other"),
        Append(alice, tuple(Item(b"m", received_ms=time_ms) for time_ms in TIMES_MS)),
        Append(alice, (Item(b"other", mailboxes=("2",), received_ms=15),)),
    )


@pytest.fixture
def store(mail: Driver) -> ApplyDriver:
    """The store, with its queries in reach."""
    assert isinstance(mail, ApplyDriver)
    return mail


@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 1000])
def test_every_order_lists_all_once(mail: Driver, alice: str, page_size: int) -> None:
    """Each order lists every message of the mailbox once, whatever the page size."""
    by_time = [uid for _, uid in sorted(zip(TIMES_MS, range(1, 8), strict=True))]
    for order, uids in {
        "uid": list(range(1, 8)),
        "-uid": list(range(7, 0, -1)),
        "received": by_time,
        "-received": by_time[::-1],
    }.items():  # tidy: a plain dict
        found = mail.messages(alice, "1", order=order, page_size=page_size)
        assert [message.uid for message in found] == uids, order


def test_a_token_stays_valid_while_mail_arrives(store: ApplyDriver) -> None:
    """A page goes on behind the last message told; new mail shows where its order puts it."""
    up, down = queries.Order.UID_ASCENDING, queries.Order.UID_DESCENDING
    first_up = queries.page(store.view, "alice", 1, up, 5)
    first_down = queries.page(store.view, "alice", 1, down, 5)
    store.run(Deliver(b"new", (To("alice"),)))
    assert queries.page(store.view, "alice", 1, up, 9, first_up.following).uids == (6, 7, 8)
    assert queries.page(store.view, "alice", 1, down, 9, first_down.following).uids == (2, 1)


def test_a_token_of_another_listing_is_refused(store: ApplyDriver) -> None:
    """Another order or mailbox is BAD_PAGE_TOKEN, another UIDVALIDITY is told as such."""
    order = queries.Order.UID_ASCENDING
    token = queries.page(store.view, "alice", 1, order, 2).following
    assert token is not None
    other_life = dataclasses.replace(token, uid_validity=token.uid_validity + 1)
    for mailbox, asked, cursor, reason in (
        (1, queries.Order.UID_DESCENDING, token, error_pb2.ERROR_REASON_BAD_PAGE_TOKEN),
        (2, order, token, error_pb2.ERROR_REASON_BAD_PAGE_TOKEN),
        (1, order, other_life, error_pb2.ERROR_REASON_UID_VALIDITY_MISMATCH),
    ):
        with pytest.raises(Refused) as refused:
            queries.page(store.view, "alice", mailbox, asked, 2, cursor)
        assert refused.value.reason == reason


def test_messages_by_uid(store: ApplyDriver) -> None:
    """UIDs that name nothing are passed over; a long set goes on from the UID that was told."""
    validity = queries.mailbox(store.view, "alice", 1).uid_validity
    ranges = [(2, 3), (6, 4_294_967_295)]
    found, rest = queries.messages_by_uid(store.view, "alice", 1, validity, ranges, 3)
    assert [uid for uid, _ in found] == [2, 3, 6]
    assert rest == 7
    with pytest.raises(Refused):
        queries.messages_by_uid(store.view, "alice", 1, validity + 1, ranges, 3)


def test_uid_ranges_walk_in_steps(store: ApplyDriver) -> None:
    """A large mailbox is walked in bounded steps that join to the whole."""
    assert queries.uid_ranges(store.view, "alice", 1, 0, 4) == ([(1, 4)], 4)
    assert queries.uid_ranges(store.view, "alice", 1, 4, 4) == ([(5, 7)], 0)


def test_mailboxes_by_path_and_role(store: ApplyDriver) -> None:
    """A path is the names from the top; what is not there is MAILBOX_NOT_FOUND."""
    store.run(CreateMailbox("alice", "Below", parent="2"))
    assert queries.mailbox_by_path(store.view, "alice", ["Other", "Below"]).mailbox == 3
    assert queries.mailbox_by_role(store.view, "alice", 1).name == "INBOX"
    for path in ([], ["Below"], ["Other", "Below", "x"]):
        with pytest.raises(Refused):
            queries.mailbox_by_path(store.view, "alice", path)


def test_accounts_of_a_shard(store: ApplyDriver) -> None:
    """Pages of accounts name each once, with mail between them or without."""
    names = {"alice", *(f"user {number}" for number in range(10))}
    store.run(*(CreateAccount(name) for name in sorted(names - {"alice"})))
    found: list[str] = []
    after = ""
    while True:
        page, after = queries.accounts(store.view, after, 3)
        found += [name for name, _ in page]
        if not after:
            break
    assert len(found) == len(names)
    assert set(found) == names
