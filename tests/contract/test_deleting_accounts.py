"""Invariants 3, 14 and 16 where a whole account goes, and one of its name comes again."""

import pytest

from apply_driver import ApplyDriver
from mailbox_driver import (
    DAY_MS,
    START_MS,
    AccountSeen,
    Append,
    CreateAccount,
    CreateMailbox,
    DeleteAccount,
    Deliver,
    Delivered,
    Done,
    Driver,
    Expunge,
    Item,
    Refusal,
    To,
    Which,
    request_id,
)


@pytest.fixture(autouse=True)
def two(mail: Driver, alice: str) -> None:
    """Two accounts that share a body, and one message more."""
    mail.at(START_MS)
    mail.run(CreateAccount("bob"), Deliver(b"shared", (To(alice), To("bob"))))
    mail.run(Append(alice, (Item(b"own"),)))


def state_of(mail: Driver, account: str) -> AccountSeen:
    """An account that must be there."""
    seen = mail.account(account)
    assert isinstance(seen, AccountSeen)
    return seen


def test_an_account_with_mail_goes_by_force(mail: Driver, alice: str) -> None:
    """Without force it is refused; then it is gone for every call, and others keep their mail."""
    assert mail.run(DeleteAccount(alice)) == [Refusal("ACCOUNT_NOT_EMPTY")]
    before = state_of(mail, alice).state
    (gone,) = mail.run(DeleteAccount(alice, force=True))
    assert isinstance(gone, Done)
    assert gone.state == before
    assert mail.account(alice) == Refusal("ACCOUNT_NOT_FOUND")
    assert mail.run(Append(alice, (Item(b"x"),))) == [Refusal("ACCOUNT_NOT_FOUND")]
    assert mail.run(Deliver(b"x", (To(alice),))) == [Delivered((Refusal("ACCOUNT_NOT_FOUND"),))]
    (message,) = mail.messages("bob", "1")
    assert mail.fetch("bob", message.blob) == b"shared"
    mail.audit()


def test_its_bytes_are_freed(mail: Driver, alice: str) -> None:
    """Only what nobody else refers to, expunged messages included, after the grace time."""
    mail.run(Append(alice, (Item(b"expunged"),)), Expunge(alice, Which(("3",))))
    mail.run(DeleteAccount(alice, force=True))
    assert mail.body_count() == 3
    mail.at(START_MS + DAY_MS)
    mail.work()
    assert mail.body_count() == 1
    mail.audit()


def test_a_new_account_begins_above_the_old(mail: Driver, alice: str) -> None:
    """A later incarnation, higher UIDVALIDITYs, ids that were never given, and nothing of before;
    also when all of it happens in one entry of the log, again and again.
    """
    mail.run(*(CreateMailbox(alice, f"box {n}") for n in range(20)))
    states = [state_of(mail, alice).state]
    validities = [max(box.uid_validity for box in mail.mailboxes(alice))]
    for _ in range(3):
        _, first, _, second = mail.run(
            DeleteAccount(alice, force=True),
            CreateAccount(alice),
            DeleteAccount(alice),
            CreateAccount(alice),
        )
        mail.run(Append(alice, (Item(b"new"),)))
        (inbox,) = mail.mailboxes(alice)
        assert isinstance(first, Done)
        assert isinstance(second, Done)
        states += [first.state, second.state]
        validities.append(inbox.uid_validity)
        assert [message.uid for message in mail.messages(alice, "1")] == [1]
        mail.audit()
    assert [state.incarnation for state in states] == sorted({s.incarnation for s in states})
    assert validities == sorted(set(validities))
    assert mail.messages(alice, "1")[0].id == "5"


def test_a_new_account_reads_nothing_of_the_old(mail: Driver, alice: str) -> None:
    """Not a blob id from before, though the bytes are still there."""
    blob = mail.messages(alice, "1")[1].blob
    mail.run(DeleteAccount(alice, force=True), CreateAccount(alice))
    assert mail.fetch(alice, blob) == Refusal("BLOB_NOT_FOUND")
    assert mail.run(Append(alice, (Item(blob=blob),))) == [Refusal("BLOB_NOT_FOUND")]
    assert mail.message(alice, "1") == Refusal("MESSAGE_NOT_FOUND")
    mail.audit()


def test_a_large_account_is_gone_at_once(mail: Driver, alice: str) -> None:
    """Its messages are cleared in steps; until then none of its name can be made, and who waits
    can come again. Everything adds up after each step.
    """
    assert isinstance(mail, ApplyDriver)
    for _ in range(6):
        mail.run(Append(alice, tuple(Item(b"x") for _ in range(200))))
    mail.run(Expunge(alice, Which(mailbox="1", uids=((1, 300),))))
    mail.run(DeleteAccount(alice, force=True))
    assert mail.account(alice) == Refusal("ACCOUNT_NOT_FOUND")
    mail.audit()
    assert mail.run(CreateAccount(alice)) == [Refusal("OVERLOADED")]
    mail.step()
    mail.audit()
    assert isinstance(mail.run(CreateAccount(alice))[0], Done)
    mail.at(START_MS + 40 * DAY_MS)
    mail.work()
    mail.audit()
    assert mail.body_count() == 1


def test_deleting_can_be_retried(mail: Driver, alice: str) -> None:
    """The same request_id answers the same, also when an account of the name is there again."""
    call = DeleteAccount(alice, force=True, request=request_id(1))
    (first,) = mail.run(call)
    (again,) = mail.run(call)
    mail.run(CreateAccount(alice))
    assert mail.run(call) == [first]
    assert again == first
    assert isinstance(mail.account(alice), AccountSeen)


def test_old_work_does_not_touch_a_new_account(mail: Driver, alice: str) -> None:
    """What was due in an earlier life of an account changes nothing in a later one."""
    mail.run(Expunge(alice, Which(("1",))), DeleteAccount(alice, force=True))
    mail.run(CreateAccount(alice), Append(alice, (Item(b"new"),)))
    state = state_of(mail, alice)
    mail.at(START_MS + 20 * DAY_MS)
    mail.work()
    assert state_of(mail, alice) == state
    mail.audit()
