"""Invariants 1, 2, 9, 11, 12 and 19 of a mail store, as far as adding mail goes."""

from mailbox_driver import (
    Append,
    CreateAccount,
    CreateMailbox,
    Deliver,
    Delivered,
    Done,
    Driver,
    Item,
    Refusal,
    To,
)


def done(outcome: object) -> Done:
    """What must not have been refused."""
    assert isinstance(outcome, Done), outcome
    return outcome


def delivered(outcome: object) -> tuple[Done | Refusal, ...]:
    """The answers of a delivery."""
    assert isinstance(outcome, Delivered), outcome
    return outcome.each


def test_uids_rise_in_commit_order(mail: Driver, alice: str) -> None:
    """Deliveries and appends of one mailbox get rising UIDs in the order they were committed."""
    outcomes = mail.run(
        Deliver(b"one", (To(alice),)),
        Append(alice, (Item(b"two"), Item(b"three"))),
        Deliver(b"four", (To(alice),)),
    )
    uids = [
        place.uid
        for outcome in outcomes
        for one in (delivered(outcome) if isinstance(outcome, Delivered) else (outcome,))
        for stored in done(one).stored
        for place in stored.places
    ]
    assert uids == [1, 2, 3, 4]


def test_uidnext_changes_only_when_mail_is_added(mail: Driver, alice: str) -> None:
    """UIDNEXT is above every UID given; refused mail and other mailboxes leave it alone."""
    mail.run(Deliver(b"one", (To(alice),)))
    (made,) = mail.run(CreateMailbox(alice, "Other"))
    other = done(made).mailbox
    mail.run(
        Append(alice, (Item(b"x", mailboxes=(other,)),)),
        Append(alice, (Item(b"y"), Item(b"z", mailboxes=("77",)))),
    )
    assert [(box.name, box.uid_next) for box in mail.mailboxes(alice)] == [
        ("INBOX", 2),
        ("Other", 2),
    ]


def test_uid_validity_is_never_given_twice(mail: Driver, alice: str) -> None:
    """Mailboxes made within one second still have a UIDVALIDITY of their own each, rising."""
    mail.run(*(CreateMailbox(alice, f"box {number}") for number in range(5)))
    given = [box.uid_validity for box in mail.mailboxes(alice)]
    assert given == sorted(set(given))
    assert len(given) == 6


def test_counters_equal_a_scan(mail: Driver, alice: str) -> None:
    """total, unseen and size are exact, a message in two mailboxes counting in both."""
    (made,) = mail.run(CreateMailbox(alice, "Archive"))
    archive = done(made).mailbox
    mail.run(
        Append(alice, (Item(b"12345", mailboxes=("1", archive), keywords=("$Seen",)),)),
        Deliver(b"123", (To(alice),)),
    )
    seen = {box.name: (box.total, box.unseen, box.size_bytes) for box in mail.mailboxes(alice)}
    assert seen == {"INBOX": (2, 1, 8), "Archive": (1, 0, 5)}
    mail.audit()


def test_a_delivery_answers_for_each_recipient(mail: Driver, alice: str) -> None:
    """One recipient's refusal takes nothing from another; the answers come in the order asked."""
    mail.run(CreateAccount("bob", quota_bytes=3), CreateAccount("carol"))
    answers = delivered(
        mail.run(
            Deliver(
                b"12345",
                (To("nobody"), To(alice), To("bob"), To("carol", ("99",)), To("carol")),
            )
        )[0]
    )
    assert answers[0] == Refusal("ACCOUNT_NOT_FOUND")
    assert done(answers[1]).stored[0].places[0].uid == 1
    assert answers[2] == Refusal("OVER_QUOTA")
    assert answers[3] == Refusal("MAILBOX_NOT_FOUND")
    assert done(answers[4]).stored[0].places[0].uid == 1
    mail.audit()


def test_recipients_share_one_body(mail: Driver, alice: str) -> None:
    """A body is kept once for all recipients of a shard, and each can fetch it."""
    mail.run(CreateAccount("bob"))
    one, other = delivered(mail.run(Deliver(b"shared", (To(alice), To("bob"))))[0])
    blob = done(one).stored[0].blob
    assert done(other).stored[0].blob == blob
    assert mail.fetch(alice, blob) == mail.fetch("bob", blob) == b"shared"
    mail.audit()


def test_a_batch_append_is_all_or_nothing(mail: Driver, alice: str) -> None:
    """If the last of three messages is refused, none of them, no UID and no MODSEQ was used."""
    before = (mail.account(alice), mail.mailboxes(alice))
    items = (Item(b"one"), Item(b"two"), Item(b"three", keywords=("not a keyword",)))
    assert mail.run(Append(alice, items)) == [Refusal("BAD_FIELD")]
    assert (mail.account(alice), mail.mailboxes(alice)) == before
    assert mail.messages(alice, "1") == []
    mail.audit()


def test_fetched_bytes_are_the_appended_bytes(mail: Driver, alice: str) -> None:
    """Byte for byte, whatever they are: NUL, 8 bit, bare LF, nothing, incompressible, long."""
    raws = [b"", b"\0", b"a\nb\r\n", bytes(range(256)) * 40, b"x" * 100_000]
    stored = done(mail.run(Append(alice, tuple(map(Item, raws))))[0]).stored
    assert [mail.fetch(alice, one.blob) for one in stored] == raws


def test_acknowledged_mail_is_everywhere(mail: Driver, alice: str) -> None:
    """What was acknowledged is listed, counted, in the change feed and fetchable."""
    answer = done(delivered(mail.run(Deliver(b"news", (To(alice, (), ("Work",)),)))[0])[0])
    (stored,) = answer.stored
    (listed,) = mail.messages(alice, "1")
    assert (listed.id, listed.blob, listed.modseq) == (stored.message, stored.blob, stored.modseq)
    assert listed.keywords == ("work",)
    assert mail.uids(alice, "1") == [(1, 1)]
    assert mail.mailboxes(alice)[0].total == 1
    assert mail.fetch(alice, stored.blob) == b"news"
    last = mail.changes(alice)[-1]
    assert last.modseq == stored.modseq == answer.state.modseq
    assert last.changes == (("message", "created", stored.message), ("mailbox", "updated", "1"))


def test_mail_goes_where_it_is_sent(mail: Driver, alice: str) -> None:
    """A target twice is one membership; several targets are several memberships of one message."""
    (made,) = mail.run(CreateMailbox(alice, "Lists"))
    lists = done(made).mailbox
    (answer,) = delivered(mail.run(Deliver(b"m", (To(alice, (lists, "1", lists)),)))[0])
    places = done(answer).stored[0].places
    assert [(place.mailbox, place.uid) for place in places] == [(lists, 1), ("1", 1)]
    assert all(place.uid_validity for place in places)
    assert [one.id for one in mail.messages(alice, lists)] == ["1"]


def test_an_existing_blob_can_be_appended_again(mail: Driver, alice: str) -> None:
    """A second message of one body shares it; the quota counts each message."""
    first = done(mail.run(Append(alice, (Item(b"again"),)))[0]).stored[0]
    second = done(mail.run(Append(alice, (Item(blob=first.blob),)))[0]).stored[0]
    assert second.blob == first.blob
    assert second.message != first.message
    assert [box.size_bytes for box in mail.mailboxes(alice)] == [10]
    mail.audit()


def test_threads_follow_message_ids(mail: Driver, alice: str) -> None:
    """A reply joins the thread of what it answers, also when that was never seen itself."""
    mail.run(Deliver(b"root", (To(alice),), message_id="root@x"))
    mail.run(Deliver(b"other", (To(alice),), message_id="other@x"))
    mail.run(Deliver(b"re", (To(alice),), message_id="re@x", references=("root@x",)))
    mail.run(Deliver(b"a", (To(alice),), message_id="a@x", references=("lost@x",)))
    mail.run(Deliver(b"b", (To(alice),), message_id="b@x", references=("lost@x",)))
    assert [one.thread for one in mail.messages(alice, "1")] == ["1", "2", "1", "4", "4"]


def test_the_nearest_reference_decides_the_thread(mail: Driver, alice: str) -> None:
    """A message that refers to two threads joins that of the nearest, and joins them to nothing."""
    mail.run(Deliver(b"one", (To(alice),), message_id="one@x"))
    mail.run(Deliver(b"two", (To(alice),), message_id="two@x"))
    both = ("one@x", "two@x")
    mail.run(Deliver(b"both", (To(alice),), message_id="both@x", references=both))
    assert [one.thread for one in mail.messages(alice, "1")] == ["1", "2", "2"]
