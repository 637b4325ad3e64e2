"""Random batches against a model of a few dicts: the model is what mailraft promises, in small."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from apply_driver import ApplyDriver
from mail_model import SEEN, Account, MailModel
from mailbox_driver import (
    DAY_MS,
    START_MS,
    AccountSeen,
    Append,
    BeginUpload,
    Call,
    Copy,
    CreateAccount,
    CreateMailbox,
    DeleteAccount,
    DeleteMailbox,
    Deliver,
    Delivered,
    Done,
    Driver,
    DropUpload,
    Expunge,
    Item,
    MailboxSeen,
    ModifyKeywords,
    Move,
    Outcome,
    Refusal,
    SetQuota,
    To,
    Undelete,
    UpdateMailbox,
    UpdateMemberships,
    Upload,
    UploadPart,
    Which,
    request_id,
)
from upload_model import PART_MIN_BYTES

# What is there comes often, so that most calls do something.
ACCOUNTS = st.sampled_from(["ann"] * 8 + ["bob", "nobody"])
BOX = st.sampled_from(["1", "2", "3"] * 3 + ["4", "9"])
BOXES = st.lists(BOX, max_size=3).map(tuple)
WORDS = st.lists(st.sampled_from(["$Seen", "$seen", "Work"] * 3 + ["b a d"]), max_size=2).map(tuple)
GOOD_WORDS = st.lists(st.sampled_from(["$seen", "work", "$flagged"]), max_size=2).map(tuple)
RAW = st.binary(max_size=12)
REQUESTS = st.integers(0, 40).map(lambda n: request_id(n) if n > 30 else b"")
IDS = st.lists(st.integers(1, 9).map(str), min_size=1, max_size=4, unique=True).map(tuple)
UIDS = st.sampled_from([((1, 1),), ((2, 4),), ((1, 2), (4, 4_294_967_295)), ((1, 4_294_967_295),)])
WHICH = st.one_of(st.builds(Which, ids=IDS), st.builds(Which, mailbox=BOX, uids=UIDS))
SINCE = st.one_of(st.none(), st.integers(0, 9))
ITEMS = st.lists(
    st.builds(Item, raw=RAW, mailboxes=BOXES, keywords=WORDS), min_size=1, max_size=3
).map(tuple)
LARGE = bytes(PART_MIN_BYTES) + b"tail"  # the least that is of two parts
UPLOADED = st.sampled_from([LARGE, LARGE, b"up", b"other"])
UPLOADS = st.integers(41, 44).map(request_id)
PARTS = st.sampled_from(
    [
        (0, LARGE[:PART_MIN_BYTES]),
        (PART_MIN_BYTES, LARGE[PART_MIN_BYTES:]),
        (0, b"up"),
        (0, b"other"),
        (1, b"x"),
    ]
)
_OF_UPLOADS = BeginUpload | UploadPart | DropUpload | Upload
WINDOW_MS = 7 * DAY_MS
TOGETHER_MAX = 4


class MailMachine(RuleBasedStateMachine):
    """Calls gather until they are sent together; then the model carries them out one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.mail: Driver = self.make()
        self.model = MailModel()
        self.pending: list[Call] = []
        self.remembered: dict[tuple[bytes, str], tuple[object, Outcome]] = {}
        self.contents: dict[tuple[str, int, int], tuple[str, bytes]] = {}
        self.uid_next: dict[tuple[str, int], int] = {}
        self.uploaded: list[str] = []  # every blob that an upload ever became
        self.mail.at(START_MS)

    def make(self) -> Driver:
        """The store under test."""
        return ApplyDriver()

    @initialize(
        items=st.lists(st.builds(Item, RAW, mailboxes=BOXES, keywords=GOOD_WORDS), max_size=6)
    )
    def begin(self, items: list[Item]) -> None:
        """Some mail to begin with."""
        self.call(CreateAccount("ann"))
        self.call(CreateMailbox("ann", "A"))
        self.call(CreateMailbox("ann", "B", parent="2"))
        self.send(0)
        for item in items:
            self.call(Append("ann", (item,)))
        self.send(0)

    def call(self, call: Call) -> None:
        """Once some have gathered they are sent."""
        self.pending.append(call)
        if len(self.pending) >= TOGETHER_MAX:
            self.send(0)

    # ---- calls

    @rule(account=ACCOUNTS, quota=st.sampled_from([0, 20, 60]), request=REQUESTS)
    def create(self, account: str, quota: int, request: bytes) -> None:
        if account != "nobody":
            self.call(CreateAccount(account, quota_bytes=quota, request=request))

    @rule(account=ACCOUNTS, force=st.booleans(), sure=st.integers(0, 5), request=REQUESTS)
    def delete(self, account: str, force: bool, sure: int, request: bytes) -> None:
        if not sure:
            self.call(DeleteAccount(account, force=force, request=request))

    @rule(
        account=ACCOUNTS,
        name=st.sampled_from(["A", "B", "INBOX"]),
        parent=st.sampled_from(["", "", "2", "9"]),
        request=REQUESTS,
    )
    def create_mailbox(self, account: str, name: str, parent: str, request: bytes) -> None:
        self.call(CreateMailbox(account, name, parent=parent, request=request))

    @rule(
        account=ACCOUNTS,
        box=BOX,
        name=st.sampled_from([None, "A", "C"]),
        parent=st.sampled_from([None, "", "1", "2", "3"]),
        request=REQUESTS,
    )
    def update_mailbox(
        self, account: str, box: str, name: str | None, parent: str | None, request: bytes
    ) -> None:
        self.call(UpdateMailbox(account, box, name=name, parent=parent, request=request))

    @rule(account=ACCOUNTS, box=BOX, force=st.booleans(), request=REQUESTS)
    def delete_mailbox(self, account: str, box: str, force: bool, request: bytes) -> None:
        self.call(DeleteMailbox(account, box, force=force, request=request))

    @rule(account=ACCOUNTS, quota=st.sampled_from([0, 10, 60]), request=REQUESTS)
    def set_quota(self, account: str, quota: int, request: bytes) -> None:
        self.call(SetQuota(account, quota_bytes=quota, request=request))

    @rule(
        raw=RAW,
        to=st.lists(st.builds(To, ACCOUNTS, BOXES, WORDS), min_size=1, max_size=4),
        request=REQUESTS,
    )
    def deliver(self, raw: bytes, to: list[To], request: bytes) -> None:
        self.call(Deliver(raw, tuple(to), request))

    @rule(account=ACCOUNTS, items=ITEMS, request=REQUESTS)
    def append(self, account: str, items: tuple[Item, ...], request: bytes) -> None:
        self.call(Append(account, items, request))

    @rule(
        call=st.builds(
            ModifyKeywords,
            ACCOUNTS,
            WHICH,
            add=GOOD_WORDS,
            unchanged_since=SINCE,
            request=REQUESTS,
        )
        | st.builds(ModifyKeywords, ACCOUNTS, WHICH, replace=GOOD_WORDS)
        | st.builds(ModifyKeywords, ACCOUNTS, WHICH, remove=GOOD_WORDS)
        | st.builds(
            ModifyKeywords,
            ACCOUNTS,
            st.builds(Which, mailbox=BOX, uids=UIDS),
            add=GOOD_WORDS,
            unchanged_since=SINCE,
            deleted=st.booleans(),
        )
    )
    def modify(self, call: ModifyKeywords) -> None:
        self.call(call)

    @rule(
        account=ACCOUNTS,
        which=WHICH,
        add=BOXES,
        remove=BOXES,
        deleted=st.lists(st.tuples(BOX, st.booleans()), max_size=2).map(tuple),
        since=SINCE,
        request=REQUESTS,
    )
    def place(
        self,
        account: str,
        which: Which,
        add: tuple[str, ...],
        remove: tuple[str, ...],
        deleted: tuple[tuple[str, bool], ...],
        since: int | None,
        request: bytes,
    ) -> None:
        self.call(UpdateMemberships(account, which, add, remove, deleted, since, request))

    @rule(account=ACCOUNTS, which=WHICH, source=BOX, to=BOX, request=REQUESTS)
    def move(self, account: str, which: Which, source: str, to: str, request: bytes) -> None:
        source = "" if which.mailbox else source
        self.call(Move(account, which, to, source=source, request=request))

    @rule(account=ACCOUNTS, which=WHICH, to=BOX, duplicate=st.booleans(), request=REQUESTS)
    def copy(self, account: str, which: Which, to: str, duplicate: bool, request: bytes) -> None:
        self.call(Copy(account, which, to, duplicate=duplicate, request=request))

    @rule(account=ACCOUNTS, which=WHICH, marked=st.booleans(), request=REQUESTS)
    def expunge(self, account: str, which: Which, marked: bool, request: bytes) -> None:
        only_deleted = marked and bool(which.mailbox)
        self.call(Expunge(account, which, only_deleted=only_deleted, request=request))

    @rule(account=ACCOUNTS, ids=IDS, to=st.sampled_from(["", "", "2"]), request=REQUESTS)
    def undelete(self, account: str, ids: tuple[str, ...], to: str, request: bytes) -> None:
        self.call(Undelete(account, ids, target=to, request=request))

    @rule(account=ACCOUNTS, box=st.sampled_from(["", "1", "2"]), hours=st.integers(0, 50))
    def undelete_since(self, account: str, box: str, hours: int) -> None:
        since_ms = START_MS + hours * DAY_MS // 24
        self.call(Undelete(account, mailbox=box, since_ms=since_ms))

    @rule(account=ACCOUNTS, raw=UPLOADED, request=UPLOADS, whole=st.booleans())
    def upload(self, account: str, raw: bytes, request: bytes, whole: bool) -> None:
        self.call(BeginUpload(account, raw, request))
        if whole:
            for offset in range(0, len(raw), PART_MIN_BYTES):
                data = raw[offset : offset + PART_MIN_BYTES]
                self.call(UploadPart(account, offset, data, request))

    @rule(account=ACCOUNTS, part=PARTS, request=UPLOADS)
    def upload_part(self, account: str, part: tuple[int, bytes], request: bytes) -> None:
        self.call(UploadPart(account, *part, request))

    @rule(account=ACCOUNTS, request=UPLOADS)
    def drop_upload(self, account: str, request: bytes) -> None:
        self.call(DropUpload(account, request))

    @rule(account=ACCOUNTS, which=st.integers(0, 9), boxes=BOXES, request=REQUESTS)
    def append_uploaded(
        self, account: str, which: int, boxes: tuple[str, ...], request: bytes
    ) -> None:
        for blob in self.uploaded[-1 - which :][:1]:
            self.call(Append(account, (Item(blob=blob, mailboxes=boxes),), request))

    @rule(again=st.integers(0, 30))
    def retry(self, again: int) -> None:
        if self.pending:
            self.call(self.pending[again % len(self.pending)])

    # ---- carrying them out

    @rule(hours=st.sampled_from([0, 0, 1, 60]))
    def send(self, hours: int) -> None:
        """Sometimes late: then what is due was done before."""
        calls, self.pending = self.pending, []
        self.model.now_ms += hours * DAY_MS // 24
        self.mail.at(self.model.now_ms)
        self.model.begin()
        if hours:
            self.mail.work()
            self.model.cleared()
        if not calls:
            return
        for call, outcome in zip(calls, self.mail.run(*calls), strict=True):
            self.check(call, outcome)

    def check(self, call: Call, outcome: Outcome) -> None:
        if call.request and self.model.now_ms > START_MS + WINDOW_MS:
            assert outcome == Refusal("REQUEST_ID_TOO_OLD")
            return
        if not isinstance(call, Deliver):
            self.check_one(call.account, call.request, call, outcome, call)
            return
        assert isinstance(outcome, Delivered)
        for one, answer in zip(call.to, outcome.each, strict=True):
            self.check_one(one.account, call.request, (call.raw, one), answer, call, one)

    def check_one(
        self,
        account: str,
        request: bytes,
        asked: object,
        outcome: Outcome,
        call: Call,
        to: To | None = None,
    ) -> None:
        if isinstance(call, _OF_UPLOADS):  # what is there is their memory
            request = b""
        known = self.remembered.get((request, account)) if request else None
        if known is not None:
            expected = known[1] if known[0] == asked else Refusal("REQUEST_ID_REUSED")
            assert outcome == expected
            return
        said = self.model.run(call, to)
        if isinstance(said, str):
            assert outcome == Refusal(said), call
            return
        assert isinstance(outcome, Done), (call, outcome)
        for name, value in said.items():  # tidy: a plain dict
            found = getattr(outcome, name)
            if name == "mapped":
                found = tuple((each.message, each.source_uid, each.place.uid) for each in found)
            if name == "missing":
                assert isinstance(value, tuple)
                assert set(found) == set(value), call
                continue
            assert found == value, (call, name)
        if account in self.model.accounts:
            assert outcome.state.modseq == self.model.accounts[account].modseq
        self.remembered[request, account] = (asked, outcome)
        if isinstance(call, _OF_UPLOADS) and outcome.blob:
            self.model.accounts[account].uploads.composed(call.request, outcome.blob)
            self.uploaded.append(outcome.blob)

    # ---- what must be so

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        if self.pending:
            return
        for name, account in self.model.accounts.items():  # tidy: a plain dict
            seen = self.mail.account(name)
            assert isinstance(seen, AccountSeen)
            assert seen.state.modseq == account.modseq
            used = (account.used_bytes(), len(account.mails))
            assert (seen.used_bytes, seen.used_messages) == used
            found = self.mail.mailboxes(name)
            assert {box.id: (box.name, box.parent) for box in found} == {
                box.id: (box.name, box.parent)
                for box in account.boxes.values()  # tidy: a plain dict
            }
            for box in found:
                self.check_mailbox(name, account, box)
            self.check_feed(name, account)
        for name in ("ann", "bob"):
            if name not in self.model.accounts:
                assert self.mail.account(name) == Refusal("ACCOUNT_NOT_FOUND")
        self.mail.audit()

    def check_mailbox(self, name: str, account: Account, box: MailboxSeen) -> None:
        expected, mails = account.boxes[box.id], account.listed(box.id)
        assert (box.total, box.uid_next) == (len(mails), expected.uid_next)
        assert box.highest_modseq == expected.highest_modseq
        assert box.unseen == sum(SEEN not in mail.words for mail in mails)
        assert box.deleted == sum(mail.places[box.id].deleted for mail in mails)
        assert box.keywords == tuple(sorted({word for mail in mails for word in mail.words}))
        listed = self.mail.messages(name, box.id)
        assert [
            (m.id, m.uid, m.modseq, m.keywords, m.deleted, self.mail.fetch(name, m.blob))
            for m in listed
        ] == [
            (
                mail.id,
                mail.places[box.id].uid,
                mail.modseq,
                tuple(sorted(mail.words)),
                mail.places[box.id].deleted,
                mail.raw,
            )
            for mail in mails
        ]
        # Invariants 1 to 3, over all that was ever seen.
        before = self.uid_next.setdefault((name, box.uid_validity), box.uid_next)
        assert before <= box.uid_next
        self.uid_next[name, box.uid_validity] = box.uid_next
        for mail in mails:
            key = (name, box.uid_validity, mail.places[box.id].uid)
            content = (f"{box.id} {mail.id}", mail.raw)
            assert self.contents.setdefault(key, content) == content

    def check_feed(self, name: str, account: Account) -> None:
        """Invariant 5: what the feed tells from nothing is what is there."""
        there: set[tuple[str, str]] = set()
        for change in self.mail.changes(name):
            for kind, what, number in change.changes:
                if what == "destroyed":
                    there.remove((kind, number))
                elif what == "created":
                    assert (kind, number) not in there
                    there.add((kind, number))
                else:
                    assert (kind, number) in there
        assert there == {
            ("account", "0"),
            *(("mailbox", number) for number in account.boxes),
            *(("message", number) for number in account.mails),
        }


# 6,000 steps: more than the usual minute on a busy machine.
TestMailModel = pytest.mark.timeout(240)(MailMachine.TestCase)
TestMailModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
