"""The model of tests/contract/test_model.py for a store that is asked over gRPC."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from tests.contract.test_model import MailMachine

from grpc_driver import GrpcDriver
from mail_model import Account
from mailbox_driver import (
    AccountSeen,
    Append,
    BeginUpload,
    Call,
    Deliver,
    Driver,
    DropUpload,
    Item,
    ModifyKeywords,
    State,
    To,
    UpdateMailbox,
    UpdateMemberships,
    Upload,
    UploadPart,
)


class GrpcMachine(MailMachine):
    """As MailMachine, with calls in the form that the API takes, and a change feed that is followed
    as a client does: from any state that it had before.
    """

    def __init__(self) -> None:
        super().__init__()
        # Of each account, by its life: states that it was seen at, and what was there.
        self.known: dict[tuple[str, tuple[int, int]], list[tuple[State, set[str]]]] = {}

    def make(self) -> Driver:
        """Says who serves."""
        raise NotImplementedError

    def call(self, call: Call) -> None:
        """Nothing empty, and nothing twice: the API refuses that whatever the store holds. An
        upload is one stream, whose parts are the service's own affair.
        """
        match call:
            case BeginUpload():
                super().call(Upload(call.account, call.raw, call.request))
            case UploadPart() | DropUpload():
                pass
            case _:
                super().call(well_formed(call))

    def check_feed(self, name: str, account: Account) -> None:
        """Invariant 5: state(A) + ListChanges(A to B) = state(B), from the first state on, from
        some in between, and from the last.
        """
        assert isinstance(self.mail, GrpcDriver)
        seen = self.mail.account(name)
        assert isinstance(seen, AccountSeen)
        there = {
            "account 0",
            *(f"mailbox {number}" for number in account.boxes),
            *(f"message {number}" for number in account.mails),
        }
        life = seen.state.incarnation
        known = self.known.setdefault((name, life), [(State(life, 0), set())])
        for place in {0, len(known) // 2, len(known) - 1}:
            since, before = known[place]
            assert self.told(name, since, before) == there
        if known[-1][0] != seen.state:
            known.append((seen.state, there))

    def told(self, name: str, since: State, before: set[str]) -> set[str]:
        """What a client has that had `before`, and is told the changes."""
        assert isinstance(self.mail, GrpcDriver)
        have = set(before)
        for page in self.mail.changes_since(name, since):
            for kind, what, number in page.changes:
                if what == "created":
                    have.add(f"{kind} {number}")
                elif what == "destroyed":
                    have.discard(f"{kind} {number}")
                else:
                    assert f"{kind} {number}" in have, "updated, and never created"
        return have


def well_formed(call: Call) -> Call:
    """The same call without what services refuse by form alone."""
    match call:
        case Deliver():
            each = {to.account: to for to in call.to}
            to = tuple(
                To(one.account, _once(one.mailboxes), _words(one.keywords))
                for one in each.values()  # tidy: a plain dict
            )
            return dataclasses.replace(call, raw=call.raw or b"\0", to=to)
        case Append():
            return dataclasses.replace(call, items=tuple(map(_item, call.items)))
        case ModifyKeywords():
            replace = None if call.replace is None else _words(call.replace)
            return dataclasses.replace(
                call, add=_words(call.add), remove=_words(call.remove), replace=replace
            )
        case UpdateMemberships():
            return dataclasses.replace(
                call,
                add=_once(call.add),
                remove=_once(call.remove),
                deleted=tuple(dict(call.deleted).items()),  # tidy: a plain dict
            )
        case UpdateMailbox() if call.name is None and call.parent is None:
            return dataclasses.replace(call, name="A")
        case _:
            return call


def _item(item: Item) -> Item:
    return dataclasses.replace(
        item,
        raw=b"" if item.blob else item.raw or b"\0",
        mailboxes=_once(item.mailboxes),
        keywords=_words(item.keywords),
    )


def _once(asked: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(asked))


def _words(asked: Iterable[str]) -> tuple[str, ...]:
    """Services compare keywords as they are kept, also between a call and its retry."""
    return tuple(sorted({word.lower() for word in asked if " " not in word}))
