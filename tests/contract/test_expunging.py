"""Invariants 1, 2, 5 and 8 where messages go and come back."""

import pytest

from mailbox_driver import (
    DAY_MS,
    START_MS,
    AccountSeen,
    Append,
    Copy,
    CreateAccount,
    CreateMailbox,
    DeleteMailbox,
    Done,
    Driver,
    Expunge,
    Item,
    ModifyKeywords,
    Move,
    Refusal,
    Rule,
    SetQuota,
    Undelete,
    UpdateMailbox,
    Which,
)

INBOX, OTHER = "1", "2"
ALL = ((1, 4_294_967_295),)
WINDOW_MS = 7 * DAY_MS  # the default


@pytest.fixture(autouse=True)
def four(mail: Driver, alice: str) -> None:
    """Four messages in the inbox, the second with a copy in another mailbox."""
    mail.at(START_MS)
    mail.run(
        CreateMailbox(alice, "Other"),
        Append(alice, tuple(Item(b"%d" % n * 5, keywords=("k",)) for n in range(1, 5))),
        Copy(alice, Which(("2",)), OTHER),
    )


def done(outcome: object) -> Done:
    """What must not have been refused."""
    assert isinstance(outcome, Done), outcome
    return outcome


def used(mail: Driver) -> tuple[int, int]:
    """Bytes and messages that the quota counts."""
    seen = mail.account("alice")
    assert isinstance(seen, AccountSeen)
    return seen.used_bytes, seen.used_messages


def ids(mail: Driver, box: str) -> list[str]:
    """What a mailbox lists."""
    return [message.id for message in mail.messages("alice", box)]


def test_expunge_by_uid_is_of_one_mailbox(mail: Driver, alice: str) -> None:
    """A message that is elsewhere too lives on there; others are destroyed and use no quota."""
    gone = done(mail.run(Expunge(alice, Which(mailbox=INBOX, uids=((1, 2), (4, 9)))))[0])
    assert (gone.destroyed, gone.vanished) == (("1", "4"), ((1, 2), (4, 4)))
    assert (ids(mail, INBOX), ids(mail, OTHER)) == (["3"], ["2"])
    assert used(mail) == (10, 2)
    mail.audit()


def test_expunge_by_id_is_of_all_mailboxes(mail: Driver, alice: str) -> None:
    """Ids that name nothing are told."""
    gone = done(mail.run(Expunge(alice, Which(("2", "77"))))[0])
    assert (gone.destroyed, gone.missing) == (("2",), ("77",))
    assert (ids(mail, INBOX), ids(mail, OTHER)) == (["1", "3", "4"], [])
    mail.audit()


def test_only_what_is_marked_goes(mail: Driver, alice: str) -> None:
    """only_deleted takes those with the flag Deleted in this very mailbox (RFC 9051, 6.4.9)."""
    mail.run(ModifyKeywords(alice, Which(mailbox=INBOX, uids=((2, 3),)), deleted=True))
    (there,) = mail.run(Expunge(alice, Which(mailbox=OTHER, uids=ALL), only_deleted=True))
    assert done(there).vanished == ()
    (here,) = mail.run(Expunge(alice, Which(mailbox=INBOX, uids=ALL), only_deleted=True))
    assert (done(here).destroyed, done(here).vanished) == (("3",), ((2, 3),))
    by_id = Expunge(alice, Which(("1",)), only_deleted=True)
    assert mail.run(by_id) == [Refusal("BAD_FIELD")]
    mail.audit()


def test_uids_are_never_given_again(mail: Driver, alice: str) -> None:
    """Not after expunging the last, not after emptying the mailbox, not by undeletion."""
    mail.run(Expunge(alice, Which(("4",))), Append(alice, (Item(b"five"),)))
    assert mail.uids(alice, INBOX) == [(1, 3), (5, 5)]
    mail.run(Expunge(alice, Which(mailbox=INBOX, uids=ALL)))
    mail.run(Undelete(alice, ("4",)), Append(alice, (Item(b"seven"),)))
    assert mail.uids(alice, INBOX) == [(6, 7)]
    assert mail.mailboxes(alice)[0].uid_next == 8
    mail.audit()


def test_uidnext_stays_where_mail_goes(mail: Driver, alice: str) -> None:
    """Expunging, moving out and flagging leave UIDNEXT alone."""
    mail.run(
        Expunge(alice, Which(("4",))),
        Move(alice, Which(("3",)), OTHER, source=INBOX),
        ModifyKeywords(alice, Which(("1",)), add=("x",)),
    )
    assert [box.uid_next for box in mail.mailboxes(alice)] == [5, 3]


def test_expunge_raises_highest_modseq(mail: Driver, alice: str) -> None:
    """A mailbox that only lost messages has changed (RFC 7162 section 3.1.2.1); another has not."""
    before = [box.highest_modseq for box in mail.mailboxes(alice)]
    state = done(mail.run(Expunge(alice, Which(("1",))))[0]).state
    after = [box.highest_modseq for box in mail.mailboxes(alice)]
    assert after == [state.modseq, before[1]]
    assert mail.changes(alice)[-1].changes == (
        ("mailbox", "updated", "1"),
        ("message", "destroyed", "1"),
    )


def test_undelete_restores_the_message(mail: Driver, alice: str) -> None:
    """Under its id, with its bytes, thread and keywords, where it was, under new UIDs."""
    before = mail.messages(alice, INBOX)[1]
    mail.run(Expunge(alice, Which(("2",))))
    assert used(mail) == (15, 3)
    assert done(mail.run(Undelete(alice, ("2",)))[0]).restored == ("2",)
    after = mail.messages(alice, INBOX)[-1]
    assert (after.id, after.blob, after.thread, after.keywords) == (
        before.id,
        before.blob,
        before.thread,
        before.keywords,
    )
    assert (after.uid, ids(mail, OTHER)) == (5, ["2"])
    assert mail.fetch(alice, after.blob) == b"22222"
    assert used(mail) == (20, 4)
    mail.audit()


def test_undelete_by_time_and_mailbox(mail: Driver, alice: str) -> None:
    """The newest first, only what was in that mailbox, only since then; elsewhere if asked."""
    mail.run(Expunge(alice, Which(("1",))))
    mail.at(START_MS + 1000)
    mail.run(Expunge(alice, Which(("2", "3"))))
    (outcome,) = mail.run(Undelete(alice, since_ms=START_MS + 1000, mailbox=INBOX, target=OTHER))
    assert done(outcome).restored == ("3", "2")
    assert ids(mail, OTHER) == ["3", "2"]
    (rest,) = mail.run(Undelete(alice))
    assert done(rest).restored == ("1",)
    mail.audit()


def test_undelete_into_a_mailbox_that_is_gone(mail: Driver, alice: str) -> None:
    """What was in a mailbox that was deleted comes back into the INBOX."""
    mail.run(Move(alice, Which(("4",)), OTHER, source=INBOX))
    mail.run(DeleteMailbox(alice, OTHER, force=True))
    assert ids(mail, INBOX) == ["1", "2", "3"]
    assert done(mail.run(Undelete(alice, ("4",)))[0]).restored == ("4",)
    assert ids(mail, INBOX) == ["1", "2", "3", "4"]
    mail.audit()


def test_undelete_needs_quota(mail: Driver, alice: str) -> None:
    """What is expunged uses none; bringing it back does, or is refused as a whole."""
    mail.run(Expunge(alice, Which(("1", "3"))), SetQuota(alice, quota_bytes=19))
    assert mail.run(Undelete(alice, ("1", "3"))) == [Refusal("OVER_QUOTA")]
    assert used(mail) == (10, 2)
    assert done(mail.run(Undelete(alice, ("1",)))[0]).restored == ("1",)
    mail.audit()


def test_the_undelete_window_ends(mail: Driver, alice: str) -> None:
    """A moment before it comes back; at its end it does not, whether it was cleared away or not."""
    mail.run(Expunge(alice, Which(("1", "3"))))
    mail.at(START_MS + WINDOW_MS - 1)
    assert done(mail.run(Undelete(alice, ("1",)))[0]).restored == ("1",)
    mail.at(START_MS + WINDOW_MS)
    assert done(mail.run(Undelete(alice, ("3",)))[0]).missing == ("3",)
    assert done(mail.run(Undelete(alice))[0]).restored == ()
    mail.audit()


def test_what_cannot_come_back_is_freed(mail: Driver, alice: str) -> None:
    """Some time after the window nothing is left of it, bytes included; the rest is all there."""
    mail.run(Expunge(alice, Which(("1", "3"))))
    assert mail.work() == 0
    mail.at(START_MS + WINDOW_MS + DAY_MS)
    assert mail.work() > 0
    assert mail.work() == 0
    assert mail.body_count() == 4
    mail.at(START_MS + WINDOW_MS + 2 * DAY_MS)
    mail.work()
    assert mail.body_count() == 2
    mail.audit()


def test_a_mailbox_may_keep_nothing(mail: Driver, alice: str) -> None:
    """With a window of 0 an expunged message is gone at once; the longest of its windows counts."""
    mail.run(UpdateMailbox(alice, INBOX, rule=Rule(undelete_window_ms=0)))
    mail.run(Expunge(alice, Which(("1", "2"))))
    outcome = done(mail.run(Undelete(alice, ("1", "2")))[0])
    assert (outcome.restored, outcome.missing) == (("2",), ("1",))
    mail.audit()


def test_what_is_kept_is_bounded_by_the_quota(mail: Driver) -> None:
    """An account cannot keep more than its quota by expunging again and again."""
    mail.run(CreateAccount("small", quota_bytes=10))
    for number in range(5):
        mail.run(Append("small", (Item(b"12345"),)), Expunge("small", Which((str(number + 1),))))
    assert done(mail.run(Undelete("small"))[0]).restored == ("2", "1")
    mail.audit()


def test_an_undeleted_message_is_told_as_created(mail: Driver, alice: str) -> None:
    """The change feed shows it going and coming: no client is left without it."""
    mail.run(Expunge(alice, Which(("1",))), Undelete(alice, ("1",)))
    gone, back = mail.changes(alice)[-2:]
    assert ("message", "destroyed", "1") in gone.changes
    assert ("message", "created", "1") in back.changes


def test_expunging_goes_in_steps(mail: Driver, alice: str) -> None:
    """A large mailbox is emptied a thousand at a time, each command saying where to go on."""
    for _ in range(5):
        mail.run(Append(alice, tuple(Item(b"x") for _ in range(240))))
    everything = Expunge(alice, Which(mailbox=INBOX, uids=ALL))
    first = done(mail.run(everything)[0])
    assert (first.vanished, first.rest) == (((1, 1000),), 1001)
    mail.audit()
    assert done(mail.run(everything)[0]).rest == 0
    assert mail.messages(alice, INBOX) == []
    mail.audit()
