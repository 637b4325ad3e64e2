"""Invariants 5 and 14 over time: retention, bodies that nobody needs, changes that are too old."""

import pytest

from apply_driver import ApplyDriver
from mailbox_driver import (
    DAY_MS,
    START_MS,
    AccountSeen,
    Append,
    CreateAccount,
    CreateMailbox,
    DeleteMailbox,
    Deliver,
    Done,
    Driver,
    Expunge,
    Item,
    Move,
    Rule,
    To,
    Undelete,
    UpdateMailbox,
    Which,
    request_id,
)
from mailraft.node.mailstore import changes, rules
from mailraft.node.mailstore.errors import Refused
from mailraft.v1 import error_pb2

INBOX, OTHER = "1", "2"
HOUR_MS = 3600 * 1000
ALL = ((1, 4_294_967_295),)


@pytest.fixture(autouse=True)
def clock(mail: Driver, alice: str) -> None:
    """The clock stands, and there is a second mailbox."""
    mail.at(START_MS)
    mail.run(CreateMailbox(alice, "Other"))


def ids(mail: Driver, box: str) -> list[str]:
    """What a mailbox lists."""
    return [message.id for message in mail.messages("alice", box)]


# ---- retention


def test_messages_go_by_age(mail: Driver, alice: str) -> None:
    """By the time they came into the mailbox, not by what their headers say; moved in anew they
    stay anew; and they can be undeleted.
    """
    mail.run(UpdateMailbox(alice, INBOX, rule=Rule(expunge_after_ms=2 * DAY_MS)))
    mail.run(Append(alice, (Item(b"old", received_ms=5), Item(b"moved"))))
    mail.run(Move(alice, Which(("2",)), OTHER, source=INBOX))
    mail.at(START_MS + DAY_MS)
    mail.work()
    mail.run(Append(alice, (Item(b"new", received_ms=5),)))
    mail.run(Move(alice, Which(("2",)), INBOX, source=OTHER))
    assert ids(mail, INBOX) == ["1", "3", "2"]
    mail.at(START_MS + 2 * DAY_MS)
    mail.work()
    assert ids(mail, INBOX) == ["3", "2"]
    mail.audit()
    assert isinstance(mail.run(Undelete(alice, ("1",)))[0], Done)
    assert ids(mail, INBOX) == ["3", "2", "1"]


def test_messages_go_by_number(mail: Driver, alice: str) -> None:
    """The oldest first, until as many are left as the rule says; it holds for later mail too."""
    mail.run(UpdateMailbox(alice, INBOX, rule=Rule(messages_max=2)))
    mail.run(Append(alice, tuple(Item(b"x") for _ in range(5))))
    mail.work()
    assert ids(mail, INBOX) == ["4", "5"]
    mail.run(Append(alice, (Item(b"y"),)))
    mail.at(START_MS + HOUR_MS)
    mail.work()
    assert ids(mail, INBOX) == ["5", "6"]
    mail.audit()


def test_retention_goes_in_steps(mail: Driver, alice: str) -> None:
    """A rule on a large mailbox takes a thousand at a time."""
    assert isinstance(mail, ApplyDriver)
    for _ in range(11):
        mail.run(Append(alice, tuple(Item(b"x") for _ in range(200))))
    mail.run(UpdateMailbox(alice, INBOX, rule=Rule(messages_max=7)))
    sizes = []
    for _ in range(3):
        mail.step()
        mail.audit()
        sizes.append(mail.mailboxes(alice)[0].total)
    assert sizes == [1200, 200, 7]


def test_a_rule_that_is_gone_takes_nothing(mail: Driver, alice: str) -> None:
    """Changed, taken away, or its mailbox deleted: only the rule in force is applied."""
    mail.run(
        CreateMailbox(alice, "Third", rule=Rule(expunge_after_ms=HOUR_MS)),
        UpdateMailbox(alice, INBOX, rule=Rule(expunge_after_ms=HOUR_MS)),
        UpdateMailbox(alice, OTHER, rule=Rule(expunge_after_ms=HOUR_MS)),
        Append(alice, (Item(b"x", mailboxes=(INBOX, OTHER)),)),
        UpdateMailbox(alice, INBOX, rule=Rule(expunge_after_ms=9 * DAY_MS)),
        UpdateMailbox(alice, OTHER, rule=Rule()),
        DeleteMailbox(alice, "3"),
    )
    mail.at(START_MS + DAY_MS)
    mail.work()
    mail.audit()
    assert (ids(mail, INBOX), ids(mail, OTHER)) == (["1"], ["1"])
    mail.at(START_MS + 9 * DAY_MS)
    mail.work()
    assert (ids(mail, INBOX), ids(mail, OTHER)) == ([], ["1"])


# ---- bodies


def test_no_unreferenced_body_outlives_its_grace(mail: Driver, alice: str) -> None:
    """Bodies of refused mail, of retries and of what is gone for good are removed, not before
    their time, and nothing that anybody can still read or bring back is.
    """
    mail.run(CreateAccount("bob"), UpdateMailbox(alice, INBOX, rule=Rule(undelete_window_ms=0)))
    deliver = Deliver(b"shared", (To(alice), To("bob"), To("nobody")), request=request_id(1))
    mail.run(deliver)
    mail.run(deliver, Append("nobody", (Item(b"refused"),)), Append(alice, (Item(b"mine"),)))
    mail.run(Expunge(alice, Which(("1", "2"))))
    assert mail.body_count() == 4
    mail.audit()
    mail.at(START_MS + rules.BODY_GRACE_MS - 1)
    assert mail.work() == 0
    mail.at(START_MS + rules.BODY_GRACE_MS)
    mail.work()
    assert mail.body_count() == 1
    assert mail.fetch("bob", mail.messages("bob", INBOX)[0].blob) == b"shared"
    mail.audit()


def test_no_referenced_body_is_missing(mail: Driver, alice: str) -> None:
    """Through expunge, undeletion and every collection what is listed can be fetched."""
    mail.run(Append(alice, tuple(Item(b"%d" % n) for n in range(6))))
    mail.run(Expunge(alice, Which(("1", "2", "3"))))
    for day in range(0, 30, 3):
        mail.at(START_MS + day * DAY_MS)
        mail.work()
        if day == 3:
            mail.run(Undelete(alice, ("2",)))
        mail.audit()
        for message in mail.messages(alice, INBOX):
            assert isinstance(mail.fetch(alice, message.blob), bytes)
    assert ids(mail, INBOX) == ["4", "5", "6", "2"]
    assert mail.body_count() == 4


def test_collecting_goes_in_steps(mail: Driver, alice: str) -> None:
    """A thousand bodies a command."""
    assert isinstance(mail, ApplyDriver)
    mail.run(UpdateMailbox(alice, INBOX, rule=Rule(undelete_window_ms=0)))
    for _ in range(6):
        mail.run(Append(alice, tuple(Item(b"x") for _ in range(200))))
    for _ in range(2):
        mail.run(Expunge(alice, Which(mailbox=INBOX, uids=ALL)))
    mail.at(START_MS + DAY_MS)
    mail.step()
    assert mail.body_count() == 200
    mail.audit()
    mail.step()
    assert mail.body_count() == 0


# ---- changes


def since(mail: ApplyDriver, modseq: int) -> int:
    """Up to which MODSEQ a state is told everything; 0: it is too old."""
    try:
        return changes.changes(mail.view, "alice", changes.Place(modseq), None, 1000).place.modseq
    except Refused as refused:
        return 0 if refused.reason == error_pb2.ERROR_REASON_STATE_TOO_OLD else -1


def test_changes_are_held_for_thirty_days(mail: Driver, alice: str) -> None:
    """A state of thirty days ago is told everything since; an older one is told so, never less."""
    assert isinstance(mail, ApplyDriver)
    states = []
    for day in range(0, 100, 5):
        now = START_MS + day * DAY_MS
        mail.at(now)
        mail.run(Append(alice, (Item(b"x"),)), Expunge(alice, Which((str(day // 5 + 1),))))
        seen = mail.account(alice)
        assert isinstance(seen, AccountSeen)
        states.append((now, seen.state.modseq))
        mail.work()
        mail.audit()
        for then, modseq in states:
            told = since(mail, modseq)
            assert told == seen.state.modseq or (told == 0 and now - then > 30 * DAY_MS)
    assert states[-1][0] - START_MS > 60 * DAY_MS
    assert len(mail.changes(alice)) < 20


def test_a_quiet_account_costs_nothing(mail: Driver, alice: str) -> None:
    """Once everything old is forgotten no work is due for it any more, ever."""
    mail.run(Append(alice, (Item(b"x"),)), Expunge(alice, Which(("1",))))
    for day in range(0, 400, 10):
        mail.at(START_MS + day * DAY_MS)
        mail.work()
    assert mail.changes(alice) == []
    mail.at(START_MS + 10_000 * DAY_MS)
    assert mail.work() == 0
    mail.run(Append(alice, (Item(b"y"),)))
    assert len(mail.changes(alice)) == 1
    mail.audit()
