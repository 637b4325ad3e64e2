"""Invariants 6, 7 and 9: keywords and the flag Deleted, and what is counted of them."""

import pytest

from mailbox_driver import (
    Append,
    Changed,
    CreateMailbox,
    Done,
    Driver,
    Item,
    MessageSeen,
    ModifyKeywords,
    Refusal,
    UpdateMemberships,
    Which,
)

FOREVER = 4_294_967_295
INBOX = "1"


def done(outcome: object) -> Done:
    """What must not have been refused."""
    assert isinstance(outcome, Done), outcome
    return outcome


def fill(mail: Driver, alice: str, count: int = 3, **item: object) -> list[MessageSeen]:
    """Messages in the inbox."""
    mail.run(Append(alice, tuple(Item(b"%d" % n, **item) for n in range(count))))  # type: ignore[arg-type]
    return list(mail.messages(alice, INBOX))


def words(mail: Driver, alice: str) -> list[tuple[str, ...]]:
    """The keywords of each message of the inbox."""
    return [message.keywords for message in mail.messages(alice, INBOX)]


def test_concurrent_additions_leave_both(mail: Driver, alice: str) -> None:
    """+A and +B on one message, in one batch and without knowing of each other, leave both."""
    fill(mail, alice, 1)
    mail.run(
        ModifyKeywords(alice, Which(("1",)), add=("A",)),
        ModifyKeywords(alice, Which(mailbox=INBOX, uids=((1, 1),)), add=("B",)),
        ModifyKeywords(alice, Which(("1",)), add=("C",), remove=("a",)),
    )
    assert words(mail, alice) == [("b", "c")]
    mail.audit()


def test_a_conditional_change_touches_exactly_the_unmodified(mail: Driver, alice: str) -> None:
    """Messages that changed since are left alone and named; the others are changed all the same."""
    known = fill(mail, alice)[0].modseq
    mail.run(ModifyKeywords(alice, Which(("2",)), add=("late",)))
    outcome = done(
        mail.run(
            ModifyKeywords(
                alice, Which(mailbox=INBOX, uids=((1, FOREVER),)), add=("x",), unchanged_since=known
            )
        )[0]
    )
    assert outcome.modified == ("2",)
    assert [change.message for change in outcome.changed] == ["1", "3"]
    assert words(mail, alice) == [("x",), ("late",), ("x",)]


def test_zero_is_a_value_of_unchanged_since(mail: Driver, alice: str) -> None:
    """UNCHANGEDSINCE 0 fails every message (RFC 7162 section 3.1.3) and changes nothing."""
    fill(mail, alice)
    before = mail.account(alice)
    outcome = done(
        mail.run(ModifyKeywords(alice, Which(("1", "3")), add=("x",), unchanged_since=0))[0]
    )
    assert (outcome.modified, outcome.changed) == (("1", "3"), ())
    assert mail.account(alice) == before


def test_the_condition_by_uid_is_of_the_mailbox(mail: Driver, alice: str) -> None:
    """What another mailbox marks as deleted is no change here: only by id does it count."""
    mail.run(CreateMailbox(alice, "A"), Append(alice, (Item(b"x", mailboxes=(INBOX, "2")),)))
    known = mail.messages(alice, INBOX)[0].modseq
    mail.run(UpdateMemberships(alice, Which(("1",)), deleted=(("2", True),)))
    by_uid = Which(mailbox=INBOX, uids=((1, 1),))
    (by_id,) = mail.run(ModifyKeywords(alice, Which(("1",)), add=("x",), unchanged_since=known))
    assert done(by_id).modified == ("1",)
    (here,) = mail.run(ModifyKeywords(alice, by_uid, add=("x",), unchanged_since=known))
    assert done(here).modified == ()


def test_deleted_is_of_one_mailbox(mail: Driver, alice: str) -> None:
    """The flag Deleted in one mailbox says nothing of another, and is counted in its own."""
    mail.run(CreateMailbox(alice, "A"), Append(alice, (Item(b"x", mailboxes=(INBOX, "2")),)))
    mail.run(ModifyKeywords(alice, Which(mailbox=INBOX, uids=((1, 1),)), deleted=True))
    assert [box.deleted for box in mail.mailboxes(alice)] == [1, 0]
    assert mail.messages(alice, INBOX)[0].deleted
    assert not mail.messages(alice, "2")[0].deleted
    first, second = (box.highest_modseq for box in mail.mailboxes(alice))
    assert first > second
    mail.audit()


def test_keywords_show_in_every_mailbox(mail: Driver, alice: str) -> None:
    """A keyword set in one mailbox is the message's: each of its mailboxes shows and counts it."""
    mail.run(CreateMailbox(alice, "A"), Append(alice, (Item(b"x", mailboxes=(INBOX, "2")),)))
    mail.run(ModifyKeywords(alice, Which(mailbox="2", uids=((1, 1),)), add=("$Seen", "Work")))
    for box in mail.mailboxes(alice):
        assert (box.unseen, box.keywords) == (0, ("$seen", "work"))
    one, other = (box.highest_modseq for box in mail.mailboxes(alice))
    assert one == other
    mail.audit()


def test_unseen_is_exact(mail: Driver, alice: str) -> None:
    """Setting $seen twice, taking it away, replacing all: the counters equal a scan each time."""
    fill(mail, alice)
    calls = [
        ModifyKeywords(alice, Which(("1", "2")), add=("$seen",)),
        ModifyKeywords(alice, Which(("1", "2", "3")), add=("$Seen",)),
        ModifyKeywords(alice, Which(("1",)), remove=("$SEEN",)),
        ModifyKeywords(alice, Which(("2",)), replace=("a", "b")),
        ModifyKeywords(alice, Which(("1", "2", "3")), replace=()),
    ]
    counts = []
    for call in calls:
        done(mail.run(call)[0])
        mail.audit()
        counts.append(mail.mailboxes(alice)[0].unseen)
    assert counts == [1, 0, 1, 2, 3]


def test_what_is_so_already_is_no_change(mail: Driver, alice: str) -> None:
    """A message that is as asked is told, keeps its MODSEQ, and the account stays at its state."""
    (message,) = fill(mail, alice, 1, keywords=("a",))
    before = mail.account(alice)
    outcome = done(mail.run(ModifyKeywords(alice, Which(("1",)), add=("A",)))[0])
    assert outcome.changed == (Changed("1", message.modseq, ("a",)),)
    assert mail.account(alice) == before


def test_what_is_not_there_is_named(mail: Driver, alice: str) -> None:
    """Ids that name nothing are told; UIDs that name nothing are passed over (RFC 9051, 6.4.9)."""
    fill(mail, alice, 1)
    (by_id,) = mail.run(ModifyKeywords(alice, Which(("9", "1")), add=("x",)))
    assert (done(by_id).missing, len(done(by_id).changed)) == (("9",), 1)
    (by_uid,) = mail.run(ModifyKeywords(alice, Which(mailbox=INBOX, uids=((2, 9),)), add=("x",)))
    assert (done(by_uid).missing, done(by_uid).changed) == ((), ())


def test_a_long_set_of_uids_is_done_in_steps(mail: Driver, alice: str) -> None:
    """The first 1,000 are changed; the reply says from which UID to go on, and that ends it."""
    for _ in range(6):
        mail.run(Append(alice, tuple(Item(b"x") for _ in range(200))))
    everything = Which(mailbox=INBOX, uids=((1, FOREVER),))
    first = done(mail.run(ModifyKeywords(alice, everything, add=("x",)))[0])
    assert (len(first.changed), first.rest) == (1000, 1001)
    going_on = Which(mailbox=INBOX, uids=((first.rest, FOREVER),))
    second = done(mail.run(ModifyKeywords(alice, going_on, add=("x",)))[0])
    assert (len(second.changed), second.rest) == (200, 0)
    mail.audit()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (ModifyKeywords("alice", Which(("1",)), add=("a",), remove=("A",)), "BAD_FIELD"),
        (ModifyKeywords("alice", Which(("1",)), add=("a",), replace=()), "BAD_FIELD"),
        (ModifyKeywords("alice", Which(("1",)), add=("b a d",)), "BAD_FIELD"),
        (ModifyKeywords("alice", Which(("1",)), deleted=True), "BAD_FIELD"),
        (ModifyKeywords("alice", Which(("1", "1")), add=("a",)), "BAD_FIELD"),
        (ModifyKeywords("alice", Which(mailbox="1", uids=((2, 1),))), "BAD_FIELD"),
        (ModifyKeywords("alice", Which(mailbox="7", uids=((1, 1),))), "MAILBOX_NOT_FOUND"),
        (
            ModifyKeywords("alice", Which(mailbox="1", uids=((1, 1),), uid_validity=7)),
            "UID_VALIDITY_MISMATCH",
        ),
        (
            ModifyKeywords("alice", Which(("1",)), add=tuple(f"k{n}" for n in range(128))),
            "LIMIT_REACHED",
        ),
    ],
)
def test_refusals_change_nothing(
    mail: Driver, alice: str, call: ModifyKeywords, reason: str
) -> None:
    """Each has its reason, and leaves message and account as they were."""
    fill(mail, alice, 2, keywords=("old",))
    before = (mail.account(alice), mail.messages(alice, INBOX))
    assert mail.run(call) == [Refusal(reason)]
    assert (mail.account(alice), mail.messages(alice, INBOX)) == before
    mail.audit()
