"""Random batches against a model of a few dicts: the model is what mailraft promises, in small."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from apply_driver import ApplyDriver
from mailbox_driver import (
    START_MS,
    AccountSeen,
    Append,
    Call,
    CreateAccount,
    CreateMailbox,
    Deliver,
    Delivered,
    Done,
    Item,
    Outcome,
    Refusal,
    SetQuota,
    To,
    request_id,
)

ACCOUNTS = st.sampled_from(["ann", "bob", "cy", "nobody"])
BOXES = st.lists(st.sampled_from(["1", "2", "3", "9"]), max_size=3).map(tuple)
KEYWORDS = st.lists(st.sampled_from(["$Seen", "$seen", "Work", "b a d"]), max_size=2).map(tuple)
RAW = st.binary(max_size=12)
REQUESTS = st.integers(0, 12).map(lambda n: request_id(n) if n else b"")


@dataclass
class Box:
    name: str
    mail: list[tuple[str, bytes]] = field(default_factory=list)  # message id, content
    unseen: int = 0


@dataclass
class Model:
    """One account."""

    quota_bytes: int
    modseq: int = 1
    used_bytes: int = 0
    messages: int = 0
    boxes: dict[str, Box] = field(default_factory=lambda: {"1": Box("INBOX")})

    def add(self, raw: bytes, boxes: tuple[str, ...], keywords: tuple[str, ...]) -> str:
        """The reason for a refusal, or none."""
        targets = tuple(dict.fromkeys(boxes)) or ("1",)
        if "b a d" in keywords:
            return "BAD_FIELD"
        if any(target not in self.boxes for target in targets):
            return "MAILBOX_NOT_FOUND"
        if 0 < self.quota_bytes < self.used_bytes + len(raw):
            return "OVER_QUOTA"
        self.messages += 1
        self.used_bytes += len(raw)
        for target in targets:
            self.boxes[target].mail.append((str(self.messages), raw))
            self.boxes[target].unseen += not {"$seen", "$Seen"} & set(keywords)
        return ""


class MailModel(RuleBasedStateMachine):
    """Calls gather until they are sent together; then the model carries them out one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.mail = ApplyDriver()
        self.pending: list[Call] = []
        self.model: dict[str, Model] = {}
        self.remembered: dict[tuple[bytes, str], tuple[object, Outcome]] = {}
        self.mail.at(START_MS)

    @rule(account=ACCOUNTS, quota=st.sampled_from([0, 20, 60]), request=REQUESTS)
    def create(self, account: str, quota: int, request: bytes) -> None:
        if account != "nobody":
            self.pending.append(CreateAccount(account, quota_bytes=quota, request=request))

    @rule(account=ACCOUNTS, name=st.sampled_from(["A", "B", "INBOX"]), request=REQUESTS)
    def create_mailbox(self, account: str, name: str, request: bytes) -> None:
        self.pending.append(CreateMailbox(account, name, request=request))

    @rule(account=ACCOUNTS, quota=st.sampled_from([0, 10, 60]), request=REQUESTS)
    def set_quota(self, account: str, quota: int, request: bytes) -> None:
        self.pending.append(SetQuota(account, quota_bytes=quota, request=request))

    @rule(
        raw=RAW,
        to=st.lists(st.builds(To, ACCOUNTS, BOXES, KEYWORDS), min_size=1, max_size=4),
        request=REQUESTS,
    )
    def deliver(self, raw: bytes, to: list[To], request: bytes) -> None:
        self.pending.append(Deliver(raw, tuple(to), request))

    @rule(
        account=ACCOUNTS,
        items=st.lists(
            st.builds(Item, raw=RAW, mailboxes=BOXES, keywords=KEYWORDS), min_size=1, max_size=3
        ),
        request=REQUESTS,
    )
    def append(self, account: str, items: list[Item], request: bytes) -> None:
        self.pending.append(Append(account, tuple(items), request))

    @rule(again=st.integers(0, 30))
    def retry(self, again: int) -> None:
        if self.pending:
            self.pending.append(self.pending[again % len(self.pending)])

    @rule()
    def send(self) -> None:
        calls, self.pending = self.pending, []
        if not calls:
            return
        for call, outcome in zip(calls, self.mail.run(*calls), strict=True):
            self.check(call, outcome)

    def check(self, call: Call, outcome: Outcome) -> None:
        match call:
            case Deliver(raw, to, request):
                assert isinstance(outcome, Delivered)
                for one, answer in zip(to, outcome.each, strict=True):
                    self.check_one(one.account, request, (raw, one), answer, call)
            case _:
                self.check_one(call.account, call.request, call, outcome, call)

    def check_one(
        self, account: str, request: bytes, asked: object, outcome: Outcome, call: Call
    ) -> None:
        known = self.remembered.get((request, account)) if request else None
        if known is not None:
            expected = known[1] if known[0] == asked else Refusal("REQUEST_ID_REUSED")
            assert outcome == expected
            return
        reason = self.expected(account, asked, call)
        if reason:
            assert outcome == Refusal(reason)
            return
        assert isinstance(outcome, Done)
        assert outcome.state.modseq == self.model[account].modseq
        self.remembered[request, account] = (asked, outcome)

    def expected(self, account: str, asked: object, call: Call) -> str:
        """Changes the model; the reason for a refusal, or none."""
        model = self.model.get(account)
        if isinstance(call, CreateAccount):
            if model is not None:
                return "ACCOUNT_EXISTS"
            self.model[account] = Model(call.quota_bytes)
            return ""
        if model is None:
            return "ACCOUNT_NOT_FOUND"
        match call:
            case CreateMailbox():
                if any(box.name == call.name for box in model.boxes.values()):  # tidy: a plain dict
                    return "MAILBOX_EXISTS"
                model.boxes[str(len(model.boxes) + 1)] = Box(call.name)
            case Deliver():
                assert isinstance(asked, tuple)
                if reason := model.add(call.raw, asked[1].mailboxes, asked[1].keywords):
                    return reason
            case Append():
                if reason := self.append_all(account, call.items):
                    return reason
            case SetQuota():
                model.quota_bytes = call.quota_bytes
        self.model[account].modseq += 1
        return ""

    def append_all(self, account: str, items: tuple[Item, ...]) -> str:
        before = self.model[account]
        boxes = {
            n: Box(b.name, list(b.mail), b.unseen) for n, b in before.boxes.items()
        }  # tidy: a plain dict
        trial = Model(before.quota_bytes, before.modseq, before.used_bytes, before.messages, boxes)
        for item in items:
            if reason := trial.add(item.raw, item.mailboxes, item.keywords):
                return reason
        self.model[account] = trial
        return ""

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        if self.pending:
            return
        for account, model in self.model.items():  # tidy: a plain dict
            seen = self.mail.account(account)
            assert isinstance(seen, AccountSeen)
            assert seen.state.modseq == model.modseq
            assert (seen.used_bytes, seen.used_messages) == (model.used_bytes, model.messages)
            found = self.mail.mailboxes(account)
            assert {box.id: box.name for box in found} == {
                number: box.name
                for number, box in model.boxes.items()  # tidy: a plain dict
            }
            for box in found:
                expected = model.boxes[box.id]
                assert (box.total, box.unseen) == (len(expected.mail), expected.unseen)
                listed = self.mail.messages(account, box.id)
                assert [message.uid for message in listed] == list(range(1, len(expected.mail) + 1))
                assert [
                    (message.id, self.mail.fetch(account, message.blob)) for message in listed
                ] == expected.mail
        self.mail.audit()


TestMailModel = MailModel.TestCase
TestMailModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
