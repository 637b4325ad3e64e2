"""Invariants 4, 5, 8 and 14, and what accounts and mailboxes refuse."""

import pytest

from mailbox_driver import (
    AccountSeen,
    Append,
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
)

LONG = "x" * 256


def state(mail: Driver, account: str) -> AccountSeen:
    """An account that must be there."""
    seen = mail.account(account)
    assert isinstance(seen, AccountSeen)
    return seen


def test_every_change_has_a_higher_modseq(mail: Driver, alice: str) -> None:
    """MODSEQ rises by every change of the account and by nothing else: no gap, none unnamed."""
    mail.run(
        CreateMailbox(alice, "A"),
        Deliver(b"1", (To(alice),)),
        Deliver(b"2", (To("nobody"),)),
        Append(alice, (Item(b"3"), Item(b"4"))),
        SetQuota(alice, quota_messages=10),
    )
    feed = mail.changes(alice)
    assert [change.modseq for change in feed] == [1, 2, 3, 4, 5]
    assert state(mail, alice).state.modseq == 5


def test_the_change_feed_rebuilds_the_account(mail: Driver, alice: str) -> None:
    """Replaying the feed from nothing names exactly the mailboxes and messages that are there."""
    mail.run(CreateMailbox(alice, "A"), *(Deliver(b"m", (To(alice),)) for _ in range(3)))
    mail.run(Append(alice, (Item(b"4", mailboxes=("2",)), Item(b"5"))))
    found = set()
    for change in mail.changes(alice):
        for kind, what, number in change.changes:
            assert (what == "created") == ((kind, number) not in found)
            found.add((kind, number))
    assert {number for kind, number in found if kind == "mailbox"} == {
        box.id for box in mail.mailboxes(alice)
    }
    assert {number for kind, number in found if kind == "message"} == {
        message.id for box in mail.mailboxes(alice) for message in mail.messages(alice, box.id)
    }


def test_highest_modseq_is_the_mailboxes_own(mail: Driver, alice: str) -> None:
    """Mail in one mailbox does not raise the HIGHESTMODSEQ of another."""
    mail.run(CreateMailbox(alice, "A"), Append(alice, (Item(b"x", mailboxes=("2",)),)))
    assert [box.highest_modseq for box in mail.mailboxes(alice)] == [1, 3]


def test_quota_is_exact(mail: Driver) -> None:
    """The last byte and the last message fit; one more is refused and uses nothing."""
    mail.run(CreateAccount("small", quota_bytes=10, quota_messages=3))
    fits, over, rest, full = mail.run(
        Append("small", (Item(b"12345"), Item(b"1234"))),
        Append("small", (Item(b"12"),)),
        Append("small", (Item(b"1"),)),
        Append("small", (Item(b""),)),
    )
    assert isinstance(fits, Done)
    assert isinstance(rest, Done)
    assert over == full == Refusal("OVER_QUOTA")
    seen = state(mail, "small")
    assert (seen.used_bytes, seen.used_messages) == (10, 3)
    mail.audit()


def test_an_append_over_quota_counts_all_its_messages(mail: Driver) -> None:
    """Messages that would fit one by one are refused together when their sum does not fit."""
    mail.run(CreateAccount("small", quota_bytes=10))
    assert mail.run(Append("small", (Item(b"12345"),) * 3)) == [Refusal("OVER_QUOTA")]
    assert state(mail, "small").used_bytes == 0


def test_a_lower_quota_only_refuses_additions(mail: Driver, alice: str) -> None:
    """A limit below what is used takes nothing away; without one mail comes in again."""
    mail.run(Deliver(b"12345", (To(alice),)), SetQuota(alice, quota_bytes=1))
    refused = mail.run(Deliver(b"1", (To(alice),)))
    assert refused == [Delivered((Refusal("OVER_QUOTA"),))]
    assert len(mail.messages(alice, "1")) == 1
    mail.run(SetQuota(alice))
    (answer,) = mail.run(Deliver(b"1", (To(alice),)))
    assert isinstance(answer, Delivered)
    assert isinstance(answer.each[0], Done)


def test_refused_mail_refers_to_no_body(mail: Driver) -> None:
    """A body that nobody took is referenced by nothing, so it can be collected."""
    mail.run(CreateAccount("small", quota_bytes=1))
    mail.run(Deliver(b"too large", (To("small"), To("nobody"))))
    mail.audit()
    assert mail.fetch("small", "3-0") == Refusal("BLOB_NOT_FOUND")


def test_no_account_reads_anothers_bytes(mail: Driver, alice: str) -> None:
    """Another's blob is not found: not to fetch, and not to append by its name."""
    mail.run(CreateAccount("mallory"))
    (answer,) = mail.run(Append(alice, (Item(b"secret"),)))
    assert isinstance(answer, Done)
    blob = answer.stored[0].blob
    assert mail.fetch("mallory", blob) == Refusal("BLOB_NOT_FOUND")
    assert mail.run(Append("mallory", (Item(blob=blob),))) == [Refusal("BLOB_NOT_FOUND")]
    assert mail.messages("mallory", "1") == []
    mail.audit()


def test_accounts_with_similar_names_do_not_mix(mail: Driver) -> None:
    """Ids that are prefixes of each other, or differ in case or in their bytes only, are others."""
    names = ["a", "aa", "A", "a\0", "ä", "a\u0308", "é" * 127]
    mail.run(*map(CreateAccount, names))
    mail.run(*(Deliver(name.encode(), (To(name),)) for name in names))
    for name in names:
        (message,) = mail.messages(name, "1")
        assert mail.fetch(name, message.blob) == name.encode()
    mail.audit()


def test_a_condition_on_the_state_is_exact(mail: Driver, alice: str) -> None:
    """if_in_state passes at exactly that state of that incarnation, else nothing is done."""
    then = state(mail, alice).state
    first, second = mail.run(
        Append(alice, (Item(b"1"),), if_in_state=then),
        Append(alice, (Item(b"2"),), if_in_state=then),
    )
    assert isinstance(first, Done)
    assert second == Refusal("STATE_MISMATCH")
    assert mail.run(Append(alice, (Item(b"3"),), if_in_state=first.state)) != [second]


def test_an_account_exists_once(mail: Driver, alice: str) -> None:
    """Creating it again is refused and takes nothing from it."""
    mail.run(Deliver(b"1", (To(alice),)))
    assert mail.run(CreateAccount(alice)) == [Refusal("ACCOUNT_EXISTS")]
    assert len(mail.messages(alice, "1")) == 1


@pytest.mark.parametrize("account", ["", "é" * 128])
def test_an_account_id_is_1_to_255_bytes(mail: Driver, account: str) -> None:
    """Ids that cannot be part of a key are refused by whatever names them."""
    assert mail.run(CreateAccount(account)) == [Refusal("BAD_FIELD")]
    assert mail.account(account) == Refusal("BAD_FIELD")


def test_sibling_names_are_unique(mail: Driver, alice: str) -> None:
    """The same name is refused beside, allowed below, and another in its bytes is another."""
    outcomes = mail.run(
        CreateMailbox(alice, "A"),
        CreateMailbox(alice, "A"),
        CreateMailbox(alice, "A", parent="2"),
        CreateMailbox(alice, "a"),
        CreateMailbox(alice, "INBOX"),
    )
    kinds = [one.reason if isinstance(one, Refusal) else one.mailbox for one in outcomes]  # type: ignore[union-attr]
    assert kinds == ["2", "MAILBOX_EXISTS", "3", "4", "MAILBOX_EXISTS"]


@pytest.mark.parametrize(
    ("name", "reason"), [("", "BAD_FIELD"), (LONG, "BAD_FIELD"), ("a\tb", "BAD_FIELD")]
)
def test_names_that_are_refused(mail: Driver, alice: str, name: str, reason: str) -> None:
    """Empty, too long, or with control characters."""
    assert mail.run(CreateMailbox(alice, name)) == [Refusal(reason)]


def test_a_role_is_given_once(mail: Driver, alice: str) -> None:
    """One mailbox has a role; the refused second leaves no name behind either."""
    junk, other, again = mail.run(
        CreateMailbox(alice, "Junk", role=7),
        CreateMailbox(alice, "Spam", role=7),
        CreateMailbox(alice, "Spam"),
    )
    assert other == Refusal("MAILBOX_ROLE_EXISTS")
    assert isinstance(junk, Done)
    assert isinstance(again, Done)


def test_mailboxes_nest_sixteen_deep(mail: Driver, alice: str) -> None:
    """The seventeenth level is refused, as is a parent that is not there."""
    parent = ""
    for level in range(16):
        (made,) = mail.run(CreateMailbox(alice, str(level), parent=parent))
        assert isinstance(made, Done)
        parent = made.mailbox
    assert mail.run(CreateMailbox(alice, "deep", parent=parent)) == [Refusal("LIMIT_REACHED")]
    assert mail.run(CreateMailbox(alice, "x", parent="999")) == [Refusal("MAILBOX_NOT_FOUND")]
