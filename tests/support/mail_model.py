"""What mailraft promises, in small: a few dicts that carry out calls one by one.

Nothing is shared with the store but the calls. A call is tried on a copy, so a refusal changes
nothing. Good for a handful of messages: limits and steps of a thousand are not in it.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import mailbox_driver as d
from upload_model import RefusedError, Uploads

INBOX = "1"
UNDELETE_WINDOW_MS = 7 * d.DAY_MS
SEEN = "$seen"

Expected = dict[str, object]  # fields of the Done that a call answers with


@dataclass
class Place:
    uid: int
    deleted: bool = False
    modseq: int = 0


@dataclass
class Mail:
    id: str
    raw: bytes
    words: set[str]
    blob: str = ""  # of an upload
    modseq: int = 0
    places: dict[str, Place] = field(default_factory=dict)


@dataclass
class Box:
    id: str
    name: str
    parent: str
    life: int  # another one each time that a mailbox is made
    uid_next: int = 1
    highest_modseq: int = 0


@dataclass
class Kept:
    mail: Mail
    modseq: int
    expunged_ms: int


@dataclass
class Account:
    quota_bytes: int
    life: int
    mails: dict[str, Mail] = field(default_factory=dict)
    boxes: dict[str, Box] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    uploads: Uploads = field(default_factory=Uploads)
    modseq: int = 0
    next_mail: int = 1
    next_box: int = 1
    changed: bool = False

    def now(self) -> int:
        """The MODSEQ of the command, which has changed something."""
        self.changed = True
        return self.modseq + 1

    def box(self, number: str) -> Box:
        if number not in self.boxes:
            raise RefusedError("MAILBOX_NOT_FOUND")
        return self.boxes[number]

    def listed(self, box: str) -> list[Mail]:
        there = (mail for mail in self.mails.values() if box in mail.places)  # tidy: a plain dict
        return sorted(there, key=lambda mail: mail.places[box].uid)

    def used_bytes(self) -> int:
        return sum(len(mail.raw) for mail in self.mails.values())  # tidy: a plain dict

    def admit(self, mail: Mail, boxes: list[Box]) -> None:
        if 0 < self.quota_bytes < self.used_bytes() + len(mail.raw):
            raise RefusedError("OVER_QUOTA")
        self.mails[mail.id] = mail
        mail.modseq = self.now()
        for box in boxes:
            self.join(mail, box)

    def uploaded(self, blob: str) -> bytes:
        """The bytes of a blob. It may be named as long as it waits, or a message is of it."""
        raw = self.uploads.raw_of(blob)
        if raw is not None:
            return raw
        kept = (row.mail for row in self.kept.values())  # tidy: a plain dict
        for mail in (*self.mails.values(), *kept):  # tidy: a plain dict
            if mail.blob == blob:
                return mail.raw
        raise RefusedError("BLOB_NOT_FOUND")

    def add(
        self, raw: bytes, boxes: tuple[str, ...], words: tuple[str, ...], blob: str = ""
    ) -> Mail:
        if "b a d" in words:
            raise RefusedError("BAD_FIELD")
        found = [self.box(number) for number in dict.fromkeys(boxes or (INBOX,))]
        mail = Mail(str(self.next_mail), raw, {word.lower() for word in words}, blob)
        self.admit(mail, found)
        self.next_mail += 1
        self.uploads.taken(blob)
        return mail

    def join(self, mail: Mail, box: Box) -> None:
        mail.places[box.id] = Place(box.uid_next, modseq=self.now())
        mail.modseq = box.highest_modseq = self.now()
        box.uid_next += 1

    def leave(self, mail: Mail, number: str) -> None:
        del mail.places[number]
        mail.modseq = self.now()
        if number in self.boxes:
            self.boxes[number].highest_modseq = self.now()

    def touch(self, mail: Mail, number: str) -> None:
        mail.modseq = mail.places[number].modseq = self.now()
        self.boxes[number].highest_modseq = self.now()

    def destroy(self, mail: Mail, now_ms: int, places: dict[str, Place]) -> None:
        del self.mails[mail.id]
        mail.places = places
        kept_bytes = sum(len(row.mail.raw) for row in self.kept.values())  # tidy: a plain dict
        if not 0 < self.quota_bytes < kept_bytes + len(mail.raw):
            self.kept[mail.id] = Kept(mail, self.now(), now_ms)

    def take_out(self, mail: Mail, numbers: list[str], now_ms: int) -> bool:
        places = dict(mail.places)
        for number in numbers:
            self.leave(mail, number)
        if not mail.places:
            self.destroy(mail, now_ms, places)
        return not mail.places or mail.id not in self.mails


class MailModel:
    """All accounts. begin() before calls that travel together."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.gone: dict[str, Account] = {}  # the last life of accounts that were deleted
        self.now_ms = d.START_MS
        self._lives = itertools.count(1)
        self._begun: dict[tuple[str, str], int] = {}

    def begin(self) -> None:
        """UIDs that a call names are meant under the UIDVALIDITY of this moment."""
        self._begun = {
            (name, box.id): box.life
            for name, account in self.accounts.items()  # tidy: a plain dict
            for box in account.boxes.values()  # tidy: a plain dict
        }
        for account in self.accounts.values():  # tidy: a plain dict
            for row in list(account.kept.values()):  # tidy: a plain dict
                if row.expunged_ms + UNDELETE_WINDOW_MS <= self.now_ms:
                    row.mail.id += " expired"  # kept, and counted, until it is cleared away

    def cleared(self) -> None:
        """What can be undeleted no more is cleared away, and uploads that nothing came of."""
        for account in self.accounts.values():  # tidy: a plain dict
            for number in [n for n in account.kept if account.kept[n].mail.id.endswith("expired")]:
                del account.kept[number]
            account.uploads.expire(self.now_ms)

    def run(self, call: d.Call, to: d.To | None = None) -> Expected | str:
        """One call, or of a delivery one recipient; the reason, if it is to be refused."""
        try:
            return self._carry_out(call, to)
        except RefusedError as refused:
            return str(refused)

    def _carry_out(self, call: d.Call, to: d.To | None) -> Expected:
        name = to.account if to is not None else call.account  # type: ignore[union-attr]
        if isinstance(call, d.CreateAccount):
            return self._create(call)
        if name not in self.accounts:
            raise RefusedError("ACCOUNT_NOT_FOUND")
        if isinstance(call, d.DeleteAccount):
            if self.accounts[name].mails and not call.force:
                raise RefusedError("ACCOUNT_NOT_EMPTY")
            self.gone[name] = self.accounts.pop(name)
            return {}
        trial = copy.deepcopy(self.accounts[name])
        trial.changed = False
        expected = self._run(trial, call, to)
        trial.modseq += trial.changed
        self.accounts[name] = trial
        return expected

    def _create(self, call: d.CreateAccount) -> Expected:
        if call.account in self.accounts:
            raise RefusedError("ACCOUNT_EXISTS")
        account = Account(call.quota_bytes, next(self._lives))
        if call.account in self.gone:
            account.next_mail = self.gone[call.account].next_mail
        self._make_box(account, "INBOX", "")
        account.modseq = 1
        self.accounts[call.account] = account
        return {}

    def _make_box(self, account: Account, name: str, parent: str) -> Box:
        number = str(account.next_box)
        box = Box(number, name, parent, next(self._lives), highest_modseq=account.now())
        account.next_box += 1
        account.boxes[number] = box
        return box

    def _run(self, account: Account, call: d.Call, to: d.To | None) -> Expected:
        match call:
            case d.SetQuota():
                account.quota_bytes = call.quota_bytes
                account.now()
            case d.Deliver():
                assert to is not None
                account.add(call.raw, to.mailboxes, to.keywords)
            case d.Append():
                for item in call.items:
                    raw = account.uploaded(item.blob) if item.blob else item.raw
                    account.add(raw, item.mailboxes, item.keywords, item.blob)
            case d.BeginUpload() | d.UploadPart() | d.DropUpload() | d.Upload():
                quota = account.quota_bytes or sys.maxsize
                return account.uploads.run(call, quota - account.used_bytes(), self.now_ms)
            case d.CreateMailbox():
                if call.parent:
                    account.box(call.parent)
                _check_sibling(account, call.name, call.parent)
                return {"mailbox": self._make_box(account, call.name, call.parent).id}
            case d.UpdateMailbox():
                return _update_mailbox(account, call)
            case d.DeleteMailbox():
                return _delete_mailbox(account, call, self.now_ms)
            case d.Undelete():
                return _undelete(account, call)
            case d.ModifyKeywords() | d.UpdateMemberships() | d.Move() | d.Copy() | d.Expunge():
                return self._change(account, call)
            case _:
                raise AssertionError(call)
        return {}

    def _change(
        self,
        account: Account,
        call: d.ModifyKeywords | d.UpdateMemberships | d.Move | d.Copy | d.Expunge,
    ) -> Expected:
        match call:
            case d.Move() | d.Copy():
                account.box(call.target)
            case d.UpdateMemberships():
                for number in (*call.add, *call.remove, *(mark for mark, _ in call.deleted)):
                    account.box(number)
                if set(call.add) & set(call.remove):
                    raise RefusedError("BAD_FIELD")
            case _:
                pass
        found, missing = self._select(account, call.account, call.which)
        match call:
            case d.ModifyKeywords():
                return _modify(account, call, found, missing)
            case d.UpdateMemberships():
                return _memberships(account, call, found, missing)
            case d.Move():
                return _move(account, call, found, missing)
            case d.Copy():
                return _copy(account, call, found, missing)
            case d.Expunge():
                return _expunge(account, call, found, missing, self.now_ms)

    def _select(
        self, account: Account, name: str, which: d.Which
    ) -> tuple[list[Mail], tuple[str, ...]]:
        if not which.mailbox:
            found = [account.mails[number] for number in which.ids if number in account.mails]
            return found, tuple(number for number in which.ids if number not in account.mails)
        box = account.box(which.mailbox)
        if self._begun.get((name, box.id)) != box.life:
            raise RefusedError("UID_VALIDITY_MISMATCH")
        mails = account.listed(box.id)
        return [
            mail
            for mail in mails
            if any(first <= mail.places[box.id].uid <= last for first, last in which.uids)
        ], ()


def _check_sibling(account: Account, name: str, parent: str) -> None:
    if any(
        (b.name, b.parent) == (name, parent) for b in account.boxes.values()
    ):  # tidy: a plain dict
        raise RefusedError("MAILBOX_EXISTS")


def _above(account: Account, number: str) -> Iterator[str]:
    while number:
        yield number
        number = account.box(number).parent


def _update_mailbox(account: Account, call: d.UpdateMailbox) -> Expected:
    box = account.box(call.mailbox)
    name = box.name if call.name is None else call.name
    parent = box.parent if call.parent is None else call.parent
    if (name, parent) != (box.name, box.parent):
        if box.id in _above(account, parent):
            raise RefusedError("BAD_FIELD")
        _check_sibling(account, name, parent)
    box.name, box.parent = name, parent
    account.now()
    return {}


def _delete_mailbox(account: Account, call: d.DeleteMailbox, now_ms: int) -> Expected:
    box = account.box(call.mailbox)
    if box.id == INBOX:
        raise RefusedError("BAD_FIELD")
    if any(other.parent == box.id for other in account.boxes.values()):  # tidy: a plain dict
        raise RefusedError("MAILBOX_HAS_CHILDREN")
    mails = account.listed(box.id)
    if mails and not call.force:
        raise RefusedError("MAILBOX_NOT_EMPTY")
    for mail in mails:
        account.take_out(mail, [box.id], now_ms)
    del account.boxes[box.id]
    account.now()
    return {}


def _modify(
    account: Account, call: d.ModifyKeywords, found: list[Mail], missing: tuple[str, ...]
) -> Expected:
    box = call.which.mailbox
    changed, modified = [], []
    for mail in found:
        known = mail.places[box].modseq if box else mail.modseq
        if call.unchanged_since is not None and known > call.unchanged_since:
            modified.append(mail.id)
            continue
        words = {word.lower() for word in call.add} | (mail.words - set(call.remove))
        if call.replace is not None:
            words = {word.lower() for word in call.replace}
        if words != mail.words:
            mail.words = words
            for number in mail.places:
                account.touch(mail, number)
        if call.deleted is not None and mail.places[box].deleted != call.deleted:
            mail.places[box].deleted = call.deleted
            account.touch(mail, box)
        modseq = mail.places[box].modseq if box else mail.modseq
        deleted = bool(box) and mail.places[box].deleted
        changed.append(d.Changed(mail.id, modseq, tuple(sorted(mail.words)), deleted))
    return {"changed": tuple(changed), "modified": tuple(modified), "missing": missing}


def _memberships(
    account: Account, call: d.UpdateMemberships, found: list[Mail], missing: tuple[str, ...]
) -> Expected:
    modified = []
    for mail in found:
        box = call.which.mailbox
        known = mail.places[box].modseq if box else mail.modseq
        if call.unchanged_since is not None and known > call.unchanged_since:
            modified.append(mail.id)
            continue
        if not set(mail.places) - set(call.remove) | set(call.add):
            raise RefusedError("LAST_MEMBERSHIP")
        for number in [number for number in mail.places if number in call.remove]:
            account.leave(mail, number)
        for number in dict.fromkeys(call.add):
            if number not in mail.places:
                account.join(mail, account.box(number))
        for number, deleted in dict(call.deleted).items():  # tidy: a plain dict
            if number in mail.places and mail.places[number].deleted != deleted:
                mail.places[number].deleted = deleted
                account.touch(mail, number)
    return {"modified": tuple(modified), "missing": missing}


def _move(account: Account, call: d.Move, found: list[Mail], missing: tuple[str, ...]) -> Expected:
    source, target = call.which.mailbox or call.source, account.box(call.target)
    account.box(source)
    elsewhere = tuple(mail.id for mail in found if source not in mail.places)
    there = [mail for mail in found if source in mail.places]
    mapped = []
    for mail in sorted(there, key=lambda mail: mail.places[source].uid):
        uid = mail.places[source].uid
        if source != target.id:
            account.leave(mail, source)
            if target.id not in mail.places:
                account.join(mail, target)
        mapped.append((mail.id, uid, mail.places[target.id].uid))
    return {"missing": (*missing, *elsewhere), "mapped": tuple(mapped)}


def _copy(account: Account, call: d.Copy, found: list[Mail], missing: tuple[str, ...]) -> Expected:
    target = account.box(call.target)
    mapped = []
    for mail in found:
        uid = mail.places[call.which.mailbox].uid if call.which.mailbox else 0
        one = mail
        if call.duplicate:
            one = account.add(mail.raw, (target.id,), tuple(mail.words), mail.blob)
        elif target.id not in mail.places:
            account.join(mail, target)
        mapped.append((mail.id, uid, one.places[target.id].uid))
    return {"missing": missing, "mapped": tuple(mapped)}


def _expunge(
    account: Account, call: d.Expunge, found: list[Mail], missing: tuple[str, ...], now_ms: int
) -> Expected:
    box, destroyed = call.which.mailbox, []
    for mail in found:
        if call.only_deleted and not mail.places[box].deleted:
            continue
        if account.take_out(mail, [box] if box else list(mail.places), now_ms):
            destroyed.append(mail.id)
    return {"destroyed": tuple(destroyed), "missing": missing}


def _undelete(account: Account, call: d.Undelete) -> Expected:
    target = [account.box(call.target)] if call.target else []
    there = {row.mail.id: row for row in account.kept.values()}  # tidy: a plain dict
    if call.ids:
        rows = [there[number] for number in dict.fromkeys(call.ids) if number in there]
    else:
        rows = [
            row
            for row in there.values()  # tidy: a plain dict
            if not row.mail.id.endswith("expired")
            and row.expunged_ms >= call.since_ms
            and (not call.mailbox or call.mailbox in row.mail.places)
        ]
        rows.sort(key=lambda row: (row.modseq, int(row.mail.id)), reverse=True)
    restored = []
    for row in rows:
        were = [account.boxes[number] for number in row.mail.places if number in account.boxes]
        row.mail.places = {}
        account.admit(row.mail, target or were or [account.box(INBOX)])
        del account.kept[row.mail.id]
        restored.append(row.mail.id)
    missing = tuple(number for number in dict.fromkeys(call.ids) if number not in there)
    return {"restored": tuple(restored), "missing": missing}
