"""Invariants 10 and 13: moves, copies, and the primitive below them."""

import pytest

from mailbox_driver import (
    AccountSeen,
    Append,
    Call,
    Copy,
    CreateAccount,
    CreateMailbox,
    Done,
    Driver,
    Expunge,
    Item,
    ModifyKeywords,
    Move,
    Refusal,
    UpdateMemberships,
    Which,
)

INBOX, OTHER, THIRD = "1", "2", "3"
ALL = ((1, 4_294_967_295),)


@pytest.fixture(autouse=True)
def three(mail: Driver, alice: str) -> None:
    """Three messages in the inbox, and two empty mailboxes."""
    mail.run(
        CreateMailbox(alice, "Other"),
        CreateMailbox(alice, "Third"),
        Append(alice, tuple(Item(b"%d" % n, keywords=("k",)) for n in range(3))),
    )


def done(outcome: object) -> Done:
    """What must not have been refused."""
    assert isinstance(outcome, Done), outcome
    return outcome


def ids(mail: Driver, box: str) -> list[str]:
    """What a mailbox lists."""
    return [message.id for message in mail.messages("alice", box)]


def test_a_move_loses_and_doubles_nothing(mail: Driver, alice: str) -> None:
    """Every message is in exactly one of the two, under its id; the counters of both are exact."""
    mapped = done(mail.run(Move(alice, Which(mailbox=INBOX, uids=((2, 3),)), OTHER))[0]).mapped
    assert (ids(mail, INBOX), ids(mail, OTHER)) == (["1"], ["2", "3"])
    assert [(each.message, each.source_uid, each.place.uid) for each in mapped] == [
        ("2", 2, 1),
        ("3", 3, 2),
    ]
    seen = mail.account(alice)
    assert isinstance(seen, AccountSeen)
    assert seen.used_messages == 3
    mail.audit()


def test_each_index_shows_a_message_in_one_mailbox(mail: Driver, alice: str) -> None:
    """Before and after every command of a chain of moves each message is in one mailbox."""
    for step, target in enumerate((OTHER, THIRD, INBOX, THIRD)):
        source = (INBOX, OTHER, THIRD, INBOX)[step]
        mail.run(Move(alice, Which(("3", "1")), target, source=source))
        listed = [one for box in (INBOX, OTHER, THIRD) for one in ids(mail, box)]
        assert sorted(listed) == ["1", "2", "3"]
        mail.audit()


def test_an_id_follows_a_move(mail: Driver, alice: str) -> None:
    """Id, thread, bytes, keywords and received time stay; the UID is new and the old one gone."""
    before = mail.messages(alice, INBOX)[0]
    mail.run(Move(alice, Which(("1",)), OTHER, source=INBOX))
    (after,) = mail.messages(alice, OTHER)
    assert (after.id, after.blob, after.thread, after.keywords, after.received_ms) == (
        before.id,
        before.blob,
        before.thread,
        before.keywords,
        before.received_ms,
    )
    assert mail.uids(alice, INBOX) == [(2, 3)]


def test_uids_of_the_target_rise_in_the_order_of_the_source(mail: Driver, alice: str) -> None:
    """Whatever order the ids are named in."""
    mapped = done(mail.run(Move(alice, Which(("3", "1", "2")), OTHER, source=INBOX))[0]).mapped
    assert [(each.source_uid, each.place.uid) for each in mapped] == [(1, 1), (2, 2), (3, 3)]


def test_a_move_to_where_it_is_keeps_its_uid(mail: Driver, alice: str) -> None:
    """Into the source itself nothing changes; into one that has it already it keeps that UID."""
    state = mail.account(alice)
    mapped = done(mail.run(Move(alice, Which(("1",)), INBOX, source=INBOX))[0]).mapped
    assert mapped[0].place.uid == 1
    assert mail.account(alice) == state
    mail.run(Copy(alice, Which(("2", "1")), OTHER))
    mapped = done(mail.run(Move(alice, Which(("1",)), OTHER, source=INBOX))[0]).mapped
    assert mapped[0].place.uid == 2
    assert (ids(mail, INBOX), ids(mail, OTHER)) == (["2", "3"], ["2", "1"])
    mail.audit()


def test_what_is_not_in_the_source_is_not_moved(mail: Driver, alice: str) -> None:
    """It is named, as is what does not exist."""
    outcome = done(mail.run(Move(alice, Which(("1", "99")), THIRD, source=OTHER))[0])
    assert (set(outcome.missing), outcome.mapped) == ({"1", "99"}, ())


def test_a_linked_copy_is_the_same_message(mail: Driver, alice: str) -> None:
    """It shares keywords, and the quota counts it once."""
    mail.run(Copy(alice, Which(("1",)), OTHER))
    mail.run(ModifyKeywords(alice, Which(mailbox=OTHER, uids=ALL), add=("new",)))
    assert mail.messages(alice, INBOX)[0].keywords == ("k", "new")
    seen = mail.account(alice)
    assert isinstance(seen, AccountSeen)
    assert seen.used_messages == 3
    again = done(mail.run(Copy(alice, Which(("1",)), OTHER))[0])
    assert again.mapped[0].place.uid == 1
    mail.audit()


def test_a_duplicate_is_a_message_of_its_own(mail: Driver, alice: str) -> None:
    """Its own id and keywords, the same bytes and thread, counted by the quota."""
    (made,) = done(mail.run(Copy(alice, Which(("1",)), INBOX, duplicate=True))[0]).mapped
    mail.run(ModifyKeywords(alice, Which((made.made,)), replace=("own",)))
    first, *_, last = mail.messages(alice, INBOX)
    assert (last.id, last.blob, last.thread, last.keywords) == (
        "4",
        first.blob,
        first.thread,
        ("own",),
    )
    assert first.keywords == ("k",)
    mail.run(Expunge(alice, Which(("1",))))
    assert mail.fetch(alice, last.blob) == b"0"
    mail.audit()


def test_a_duplicate_needs_quota(mail: Driver) -> None:
    """All of a copy or nothing of it fits."""
    mail.run(CreateAccount("small", quota_messages=3), Append("small", (Item(b"1"), Item(b"2"))))
    both = Which(("1", "2"))
    assert mail.run(Copy("small", both, INBOX, duplicate=True)) == [Refusal("OVER_QUOTA")]
    assert len(mail.messages("small", INBOX)) == 2
    mail.audit()


def test_memberships_change_in_one_step(mail: Driver, alice: str) -> None:
    """Added, removed and marked at once; what is so already keeps its UID and its mark."""
    (outcome,) = mail.run(
        UpdateMemberships(
            alice,
            Which(("1",)),
            add=(OTHER, THIRD),
            remove=(INBOX,),
            deleted=((THIRD, True), (INBOX, True)),
        )
    )
    (changed,) = done(outcome).changed
    assert [(place.mailbox, place.uid) for place in changed.places] == [(OTHER, 1), (THIRD, 1)]
    assert [box.deleted for box in mail.mailboxes(alice)] == [0, 0, 1]
    state = mail.account(alice)
    mail.run(UpdateMemberships(alice, Which(("1",)), add=(THIRD,), remove=(INBOX,)))
    assert mail.account(alice) == state
    mail.audit()


def test_the_last_membership_cannot_be_removed(mail: Driver, alice: str) -> None:
    """If one of the messages would be in no mailbox, none is changed."""
    mail.run(Copy(alice, Which(("1",)), OTHER))
    before = (mail.account(alice), ids(mail, INBOX), ids(mail, OTHER))
    both = UpdateMemberships(alice, Which(("1", "2")), remove=(INBOX,))
    assert mail.run(both) == [Refusal("LAST_MEMBERSHIP")]
    assert (mail.account(alice), ids(mail, INBOX), ids(mail, OTHER)) == before
    assert isinstance(mail.run(UpdateMemberships(alice, Which(("1",)), remove=(INBOX,)))[0], Done)


def test_a_conditional_move_names_the_rest(mail: Driver, alice: str) -> None:
    """unchanged_since of UpdateMemberships never aborts either."""
    known = mail.messages(alice, INBOX)[0].modseq
    mail.run(ModifyKeywords(alice, Which(("2",)), add=("x",)))
    outcome = done(
        mail.run(
            UpdateMemberships(
                alice, Which(("1", "2")), add=(OTHER,), remove=(INBOX,), unchanged_since=known
            )
        )[0]
    )
    assert outcome.modified == ("2",)
    assert (ids(mail, INBOX), ids(mail, OTHER)) == (["2", "3"], ["1"])


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Move("alice", Which(("1",)), "9", source=INBOX), "MAILBOX_NOT_FOUND"),
        (Move("alice", Which(("1",)), OTHER, source="9"), "MAILBOX_NOT_FOUND"),
        (Move("alice", Which(mailbox=INBOX, uids=ALL), OTHER, source=THIRD), "BAD_FIELD"),
        (
            Move("alice", Which(mailbox=INBOX, uids=ALL, uid_validity=7), OTHER),
            "UID_VALIDITY_MISMATCH",
        ),
        (Copy("alice", Which(("1",)), "9"), "MAILBOX_NOT_FOUND"),
        (UpdateMemberships("alice", Which(("1",)), add=("9",)), "MAILBOX_NOT_FOUND"),
        (UpdateMemberships("alice", Which(("1",)), remove=("9",)), "MAILBOX_NOT_FOUND"),
        (UpdateMemberships("alice", Which(("1",)), add=(OTHER,), remove=(OTHER,)), "BAD_FIELD"),
    ],
)
def test_refusals_move_nothing(mail: Driver, alice: str, call: Call, reason: str) -> None:
    """Each has its reason, and leaves everything as it was."""
    before = (mail.account(alice), mail.mailboxes(alice))
    assert mail.run(call) == [Refusal(reason)]
    assert (mail.account(alice), mail.mailboxes(alice)) == before
    mail.audit()
