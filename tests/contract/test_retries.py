"""Invariant 15: a mutation can be retried by its request_id, always."""

import pytest

from mailbox_driver import (
    DAY_MS,
    START_MS,
    AccountSeen,
    Append,
    Call,
    CreateAccount,
    CreateMailbox,
    Deliver,
    Delivered,
    Done,
    Driver,
    Item,
    Refusal,
    SetQuota,
    To,
    request_id,
)
from mailraft.node.mailstore import rules

ID = request_id(1)


@pytest.fixture(autouse=True)
def clock(mail: Driver) -> None:
    """The wall clock stands at the time of the ids."""
    mail.at(START_MS)


def test_a_retry_answers_the_same(mail: Driver, alice: str) -> None:
    """N times the same append: one message, one UID, the same reply, in one batch or in many."""
    append = Append(alice, (Item(b"once"),), request=ID)
    outcomes = mail.run(append, append) + mail.run(append)
    assert isinstance(outcomes[0], Done)
    assert outcomes == [outcomes[0]] * 3
    assert len(mail.messages(alice, "1")) == 1
    mail.audit()


def test_every_mutation_can_be_retried(mail: Driver) -> None:
    """Creating and updating answer a retry as the first time; a new call would be refused."""
    calls: list[Call] = [
        CreateAccount("a", request=request_id(10)),
        CreateMailbox("a", "A", request=request_id(11)),
        SetQuota("a", 5, request=request_id(12)),
    ]
    for call in calls:
        first, second = mail.run(call, call)
        assert isinstance(first, Done), call
        assert second == first
    seen = mail.account("a")
    assert isinstance(seen, AccountSeen)
    assert seen.state.modseq == 3


def test_other_content_under_an_id_is_refused(mail: Driver, alice: str) -> None:
    """The same request_id for something else does nothing."""
    mail.run(Append(alice, (Item(b"one"),), request=ID))
    reused = Refusal("REQUEST_ID_REUSED")
    assert mail.run(Append(alice, (Item(b"two"),), request=ID)) == [reused]
    assert mail.run(CreateMailbox(alice, "A", request=ID)) == [reused]
    assert mail.run(Deliver(b"one", (To(alice),), request=ID)) == [Delivered((reused,))]
    assert len(mail.messages(alice, "1")) == 1


def test_an_id_belongs_to_an_account(mail: Driver, alice: str) -> None:
    """Two accounts that use one request_id do not see each other."""
    mail.run(CreateAccount("bob"))
    mail.run(Append(alice, (Item(b"a"),), request=ID), Append("bob", (Item(b"b"),), request=ID))
    assert len(mail.messages(alice, "1")) == len(mail.messages("bob", "1")) == 1


def test_a_delivery_is_remembered_for_each_recipient(mail: Driver, alice: str) -> None:
    """A retry, regrouped, gives mail to who has none yet and repeats the others' answers."""
    mail.run(CreateAccount("bob", quota_bytes=1), CreateAccount("carol"))
    (first,) = mail.run(Deliver(b"news", (To(alice), To("bob")), request=ID))
    mail.run(SetQuota("bob"))
    (second,) = mail.run(Deliver(b"news", (To("carol"), To("bob"), To(alice)), request=ID))
    assert isinstance(first, Delivered)
    assert isinstance(second, Delivered)
    assert first.each[1] == Refusal("OVER_QUOTA")
    assert second.each[2] == first.each[0]
    assert isinstance(second.each[1], Done)
    for account in (alice, "bob", "carol"):
        (message,) = mail.messages(account, "1")
        assert mail.fetch(account, message.blob) == b"news"
    mail.audit()


def test_a_refusal_is_not_remembered(mail: Driver) -> None:
    """Once the cause is gone the same request succeeds."""
    append = Append("late", (Item(b"x"),), request=ID)
    assert mail.run(append) == [Refusal("ACCOUNT_NOT_FOUND")]
    _, outcome = mail.run(CreateAccount("late"), append)
    assert isinstance(outcome, Done)


def test_an_id_before_the_window_does_nothing(mail: Driver, alice: str) -> None:
    """Within seven days a retry answers; a moment later it is refused and never applied."""
    append = Append(alice, (Item(b"x"),), request=ID)
    (first,) = mail.run(append)
    mail.at(START_MS + 7 * DAY_MS)
    assert mail.run(append) == [first]
    mail.at(START_MS + 7 * DAY_MS + 1)
    assert mail.run(append) == [Refusal("REQUEST_ID_TOO_OLD")]
    assert mail.run(Deliver(b"x", (To(alice),), request=ID)) == [Refusal("REQUEST_ID_TOO_OLD")]
    assert len(mail.messages(alice, "1")) == 1


def test_memory_outside_the_window_is_freed(mail: Driver, alice: str) -> None:
    """Days later the rows of old requests are gone, and those within the window are all there."""
    for day in range(10):
        now = START_MS + day * DAY_MS
        mail.at(now)
        mail.run(Append(alice, (Item(b"x"),), request=request_id(day, now)))
        mail.audit()
    for day in range(10):
        now = START_MS + day * DAY_MS
        (again,) = mail.run(Append(alice, (Item(b"x"),), request=request_id(day, now)))
        assert (again == Refusal("REQUEST_ID_TOO_OLD")) == (day < 2)
    assert len(mail.messages(alice, "1")) == 10


@pytest.mark.parametrize(
    "bad",
    [
        b"short",
        bytes(16),
        b"\xff" * 16,
        request_id(1)[:6] + b"\x40" + request_id(1)[7:],  # UUIDv4
        request_id(1, START_MS + rules.REQUEST_ID_FUTURE_MS + 1),
    ],
)
def test_an_id_that_is_no_uuid7_is_refused(mail: Driver, alice: str, bad: bytes) -> None:
    """Malformed, of another version, or from the future: BAD_FIELD, and nothing is done."""
    assert mail.run(Append(alice, (Item(b"x"),), request=bad)) == [Refusal("BAD_FIELD")]
    assert mail.messages(alice, "1") == []


def test_the_shards_clock_never_falls(mail: Driver, alice: str) -> None:
    """A leader whose clock is behind cannot bring expired ids back, nor lower a UIDVALIDITY."""
    mail.at(START_MS + 8 * DAY_MS)
    mail.run(CreateMailbox(alice, "late"))
    mail.at(START_MS)
    append = Append(alice, (Item(b"x"),), request=ID)
    assert mail.run(append) == [Refusal("REQUEST_ID_TOO_OLD")]
    mail.run(CreateMailbox(alice, "later"))
    given = [box.uid_validity for box in mail.mailboxes(alice)]
    assert given == sorted(set(given))


def test_a_full_memory_refuses(mail: Driver, alice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound new requests answer OVERLOADED; retries of remembered ones still answer."""
    monkeypatch.setattr(rules, "REQUESTS_PER_SHARD_MAX", 2)
    one, two, three = (
        Append(alice, (Item(b"x"),), request=request_id(number)) for number in range(3)
    )
    first, second, third = mail.run(one, two, three)
    assert third == Refusal("OVERLOADED")
    assert mail.run(one, two) == [first, second]
    mail.at(START_MS + 8 * DAY_MS)
    now = request_id(4, START_MS + 8 * DAY_MS)
    (later,) = mail.run(Append(alice, (Item(b"x"),), request=now))
    assert isinstance(later, Done)
