"""Invariants 3 and 13: renaming, nesting and deleting mailboxes."""

import pytest

from apply_driver import ApplyDriver
from mailbox_driver import (
    AccountSeen,
    Append,
    Call,
    Copy,
    CreateMailbox,
    DeleteMailbox,
    Done,
    Driver,
    Expunge,
    Item,
    MessageSeen,
    ModifyKeywords,
    Move,
    Refusal,
    Rule,
    State,
    Undelete,
    UpdateMailbox,
    UpdateMemberships,
    Which,
    request_id,
)
from mailraft.node.mailstore import queries
from mailraft.node.mailstore.errors import Refused

INBOX, A, B, C = "1", "2", "3", "4"
ALL = ((1, 4_294_967_295),)
JUNK, TRASH = 7, 9


@pytest.fixture(autouse=True)
def tree(mail: Driver, alice: str) -> None:
    """A, with B in it, with C in that."""
    mail.run(
        CreateMailbox(alice, "A"),
        CreateMailbox(alice, "B", parent=A),
        CreateMailbox(alice, "C", parent=B),
    )


def done(outcome: object) -> Done:
    """What must not have been refused."""
    assert isinstance(outcome, Done), outcome
    return outcome


def at_path(mail: Driver, *names: str) -> str:
    """The id of the mailbox at a path, or nothing."""
    assert isinstance(mail, ApplyDriver)
    try:
        return str(queries.mailbox_by_path(mail.view, "alice", names).mailbox)
    except Refused:
        return ""


def fill(mail: Driver, alice: str, box: str, count: int) -> None:
    """Messages in a mailbox."""
    for start in range(0, count, 200):
        items = tuple(Item(b"x", mailboxes=(box,)) for _ in range(min(200, count - start)))
        done(mail.run(Append(alice, items))[0])


# ---- renaming


def test_renaming_a_parent_renames_the_children(mail: Driver, alice: str) -> None:
    """In one step: every path below is the new one, and none is the old one."""
    fill(mail, alice, C, 1)
    before = {box.id: (box.uid_validity, box.uid_next) for box in mail.mailboxes(alice)}
    done(mail.run(UpdateMailbox(alice, A, name="Z"))[0])
    assert (at_path(mail, "Z"), at_path(mail, "Z", "B", "C")) == (A, C)
    assert (at_path(mail, "A"), at_path(mail, "A", "B", "C")) == ("", "")
    assert {b.id: (b.uid_validity, b.uid_next) for b in mail.mailboxes(alice)} == before
    mail.audit()


def test_a_mailbox_moves_with_its_children(mail: Driver, alice: str) -> None:
    """Below another parent or to the top, ids and UIDs as they were."""
    done(mail.run(UpdateMailbox(alice, B, parent=INBOX, name="b"))[0])
    assert at_path(mail, "INBOX", "b", "C") == C
    done(mail.run(UpdateMailbox(alice, C, parent=""))[0])
    assert at_path(mail, "C") == C
    mail.audit()


@pytest.mark.parametrize("parent", [A, B, C])
def test_no_mailbox_is_below_itself(mail: Driver, alice: str, parent: str) -> None:
    """Neither itself nor one below becomes its parent."""
    before = mail.mailboxes(alice)
    assert mail.run(UpdateMailbox(alice, A, parent=parent)) == [Refusal("BAD_FIELD")]
    assert mail.mailboxes(alice) == before


def test_a_moved_tree_is_not_too_deep(mail: Driver, alice: str) -> None:
    """Sixteen levels are the limit for the deepest of what moves."""
    parent = ""
    for level in range(14):
        parent = done(mail.run(CreateMailbox(alice, f"d{level}", parent=parent))[0]).mailbox
    assert mail.run(UpdateMailbox(alice, A, parent=parent)) == [Refusal("LIMIT_REACHED")]
    assert isinstance(mail.run(UpdateMailbox(alice, B, parent=parent))[0], Done)
    mail.audit()


def test_a_rename_over_a_sibling_is_refused(mail: Driver, alice: str) -> None:
    """Names of siblings differ, by renaming and by moving; to its own name nothing is refused."""
    mail.run(CreateMailbox(alice, "B"))
    before = mail.mailboxes(alice)
    assert mail.run(UpdateMailbox(alice, A, name="B")) == [Refusal("MAILBOX_EXISTS")]
    assert mail.run(UpdateMailbox(alice, B, parent="")) == [Refusal("MAILBOX_EXISTS")]
    assert mail.mailboxes(alice) == before
    assert isinstance(mail.run(UpdateMailbox(alice, A, name="A"))[0], Done)
    mail.audit()


def test_a_role_can_be_given_and_taken(mail: Driver, alice: str) -> None:
    """One mailbox has it; once it is free another may; the INBOX keeps its own."""
    done(mail.run(UpdateMailbox(alice, A, role=JUNK))[0])
    assert mail.run(UpdateMailbox(alice, B, role=JUNK)) == [Refusal("MAILBOX_ROLE_EXISTS")]
    done(mail.run(UpdateMailbox(alice, A, role=TRASH))[0])
    done(mail.run(UpdateMailbox(alice, B, role=JUNK))[0])
    assert mail.run(UpdateMailbox(alice, INBOX, role=0)) == [Refusal("BAD_FIELD")]
    assert mail.run(UpdateMailbox(alice, C, role=1)) == [Refusal("MAILBOX_ROLE_EXISTS")]
    mail.audit()


def test_an_etag_guards_a_rename(mail: Driver, alice: str) -> None:
    """Mail does not change it, another change of the mailbox does."""
    seen = mail.account(alice)
    assert isinstance(seen, AccountSeen)
    known = State(seen.state.incarnation, mail.mailboxes(alice)[1].object_modseq)
    fill(mail, alice, A, 1)
    done(mail.run(UpdateMailbox(alice, A, name="A1", if_object=known))[0])
    again = UpdateMailbox(alice, A, name="A2", if_object=known)
    assert mail.run(again) == [Refusal("ETAG_MISMATCH")]
    assert at_path(mail, "A1") == A


def test_a_rename_is_no_change_of_mail(mail: Driver, alice: str) -> None:
    """HIGHESTMODSEQ stays, as no message changed; the change feed tells of the mailbox."""
    before = mail.mailboxes(alice)[1].highest_modseq
    done(mail.run(UpdateMailbox(alice, A, subscribed=True))[0])
    assert mail.mailboxes(alice)[1].highest_modseq == before
    assert mail.changes(alice)[-1].changes == (("mailbox", "updated", A),)


# ---- deleting


def test_only_an_empty_mailbox_goes_without_force(mail: Driver, alice: str) -> None:
    """With messages it needs force, with children it is refused always, the INBOX too."""
    fill(mail, alice, C, 1)
    for call, reason in (
        (DeleteMailbox(alice, C), "MAILBOX_NOT_EMPTY"),
        (DeleteMailbox(alice, B, force=True), "MAILBOX_HAS_CHILDREN"),
        (DeleteMailbox(alice, INBOX, force=True), "BAD_FIELD"),
        (DeleteMailbox(alice, "99"), "MAILBOX_NOT_FOUND"),
    ):
        assert mail.run(call) == [Refusal(reason)]
    done(mail.run(DeleteMailbox(alice, C, force=True))[0])
    done(mail.run(DeleteMailbox(alice, B))[0])
    assert [box.id for box in mail.mailboxes(alice)] == [INBOX, A]
    mail.audit()


def test_a_recreated_mailbox_is_another_one(mail: Driver, alice: str) -> None:
    """Delete and create again, or rename over the freed name: new id and UIDVALIDITY."""
    given = [box.uid_validity for box in mail.mailboxes(alice)]
    for _ in range(3):
        old = at_path(mail, "A", "B", "C")
        mail.run(DeleteMailbox(alice, old), CreateMailbox(alice, "C", parent=B))
        new = at_path(mail, "A", "B", "C")
        (validity,) = (box.uid_validity for box in mail.mailboxes(alice) if box.id == new)
        assert new != old
        assert validity > max(given)
        given.append(validity)
    mail.audit()


def test_messages_elsewhere_outlive_a_mailbox(mail: Driver, alice: str) -> None:
    """Only its memberships go; what was nowhere else is expunged, and can be brought back."""
    fill(mail, alice, C, 2)
    mail.run(Copy(alice, Which(("1",)), A), DeleteMailbox(alice, C, force=True))
    assert [(m.id, m.mailboxes) for m in mail.messages(alice, A)] == [("1", (A,))]
    assert mail.message(alice, "2") == Refusal("MESSAGE_NOT_FOUND")
    assert done(mail.run(Undelete(alice))[0]).restored == ("2",)
    mail.audit()


def test_a_large_mailbox_is_gone_at_once(mail: Driver, alice: str) -> None:
    """Whatever is left to clear, nobody sees the mailbox, or a message that was only in it; its
    name is free. The work goes on in steps, and everything adds up after each.
    """
    assert isinstance(mail, ApplyDriver)
    fill(mail, alice, C, 2500)
    mail.run(Copy(alice, Which(("2000", "2001", "2002")), A))
    (outcome,) = mail.run(DeleteMailbox(alice, C, force=True))
    done(outcome)
    assert at_path(mail, "A", "B", "C") == ""
    assert mail.message(alice, "2400") == Refusal("MESSAGE_NOT_FOUND")
    assert isinstance(mail.message(alice, "2001"), MessageSeen)
    assert [message.mailboxes for message in mail.messages(alice, A)] == [(A,)] * 3
    mail.audit()
    done(mail.run(CreateMailbox(alice, "C", parent=B))[0])
    for _ in range(2):
        mail.step()
        mail.audit()
    assert mail.work() == 0
    seen = mail.account(alice)
    assert isinstance(seen, AccountSeen)
    assert seen.used_messages == 3
    assert len(done(mail.run(Undelete(alice))[0]).restored) == 1000
    mail.audit()


def test_changes_while_a_mailbox_is_cleared(mail: Driver, alice: str) -> None:
    """What is still to be cleared does not exist for flags, moves and expunges; what is elsewhere
    too is changed there, as if the mailbox had been empty.
    """
    assert isinstance(mail, ApplyDriver)
    fill(mail, alice, C, 1500)
    both = ("1400", "1401", "1402")
    mail.run(Copy(alice, Which(both), A), DeleteMailbox(alice, C, force=True))
    (flagged,) = mail.run(ModifyKeywords(alice, Which(("1400", "1500")), add=("x", "$seen")))
    assert (done(flagged).missing, len(done(flagged).changed)) == (("1500",), 1)
    mail.audit()
    alone = UpdateMemberships(alice, Which(("1401",)), remove=(A,))
    assert mail.run(alone) == [Refusal("LAST_MEMBERSHIP")]
    done(mail.run(Move(alice, Which(("1401",)), INBOX, source=A))[0])
    (gone,) = mail.run(Expunge(alice, Which(("1402", "1499"))))
    assert (done(gone).destroyed, done(gone).missing) == (("1402",), ("1499",))
    mail.audit()
    mail.work()
    mail.audit()
    assert [m.id for box in (INBOX, A) for m in mail.messages(alice, box)] == ["1401", "1400"]


def test_a_deleted_mailbox_says_so_in_the_feed(mail: Driver, alice: str) -> None:
    """The mailbox and what was only in it are told as destroyed, the rest as updated."""
    fill(mail, alice, C, 2)
    mail.run(Copy(alice, Which(("1",)), A), DeleteMailbox(alice, C, force=True))
    assert set(mail.changes(alice)[-1].changes) == {
        ("mailbox", "destroyed", C),
        ("message", "updated", "1"),
        ("message", "destroyed", "2"),
    }


def test_every_mailbox_call_can_be_retried(mail: Driver, alice: str) -> None:
    """By its request_id each answers as the first time, and does nothing more."""
    calls: list[Call] = [
        UpdateMailbox(alice, A, name="New", request=request_id(1)),
        DeleteMailbox(alice, C, request=request_id(2)),
        CreateMailbox(alice, "R", rule=Rule(messages_max=3), request=request_id(3)),
    ]
    for call in calls:
        first, second = mail.run(call, call)
        assert isinstance(first, Done)
        assert second == first
    mail.audit()
