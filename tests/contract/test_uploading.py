"""Invariants 8, 12, 14 and 15 of large messages: parts that come one by one, and what is left."""

import pytest

from apply_driver import ApplyDriver
from mailbox_driver import (
    DAY_MS,
    START_MS,
    AccountSeen,
    Append,
    BeginUpload,
    CreateAccount,
    Done,
    DropUpload,
    Expunge,
    Item,
    Refusal,
    SetQuota,
    UploadPart,
    Which,
    request_id,
)
from mailraft.node.mailstore import rules
from upload_model import PART_MIN_BYTES

FIRST, LAST = b"first".ljust(PART_MIN_BYTES, b"."), b"last"
ID = request_id(1)
MISPLACED = Refusal("UPLOAD_OFFSET_MISMATCH")


@pytest.fixture(autouse=True)
def clock(mail: ApplyDriver) -> None:
    """The clock stands."""
    mail.at(START_MS)


def begin(mail: ApplyDriver, account: str, *parts: bytes) -> None:
    """An upload of FIRST and LAST, and what of it comes."""
    offset = 0
    mail.run(BeginUpload(account, FIRST + LAST, ID))
    for part in parts:
        mail.run(UploadPart(account, offset, part, ID))
        offset += len(part)


def uploaded(mail: ApplyDriver, account: str) -> str:
    """The blob of a whole upload."""
    begin(mail, account, FIRST, LAST)
    (done,) = mail.run(BeginUpload(account, FIRST + LAST, ID))
    assert isinstance(done, Done)
    assert done.blob
    return done.blob


def after(mail: ApplyDriver, wait_ms: int) -> int:
    """How many bodies are stored then."""
    mail.at(START_MS + wait_ms)
    mail.work()
    mail.audit()
    return mail.body_count()


def test_a_part_goes_where_it_belongs(mail: ApplyDriver, alice: str) -> None:
    """Behind what is there, once: a part that comes twice, too early or to no upload is refused,
    and what is stored is what was sent.
    """
    assert mail.run(UploadPart(alice, 0, FIRST, ID)) == [MISPLACED]
    begin(mail, alice)
    assert mail.run(UploadPart(alice, PART_MIN_BYTES, LAST, ID)) == [MISPLACED]
    (first,) = mail.run(UploadPart(alice, 0, FIRST, ID))
    assert mail.run(UploadPart(alice, 0, FIRST, ID)) == [MISPLACED]
    (last,) = mail.run(UploadPart(alice, PART_MIN_BYTES, LAST, ID))
    assert isinstance(first, Done)
    assert isinstance(last, Done)
    assert (first.offset, first.blob) == (PART_MIN_BYTES, "")
    assert mail.fetch(alice, last.blob) == FIRST + LAST
    mail.audit()


def test_a_request_is_of_one_upload(mail: ApplyDriver, alice: str) -> None:
    """Asked again it tells where it goes on; with other bytes it is refused."""
    begin(mail, alice, FIRST)
    (again,) = mail.run(BeginUpload(alice, FIRST + LAST, ID))
    assert isinstance(again, Done)
    assert again.offset == PART_MIN_BYTES
    assert mail.run(BeginUpload(alice, FIRST, ID)) == [Refusal("REQUEST_ID_REUSED")]


def test_the_quota_holds_for_uploads(mail: ApplyDriver, alice: str) -> None:
    """What would not fit is refused before it is sent, and counts when a message refers to it."""
    mail.run(SetQuota(alice, quota_bytes=len(FIRST + LAST)))
    over = BeginUpload(alice, FIRST + LAST + b"x", request_id(2))
    assert mail.run(over) == [Refusal("OVER_QUOTA")]
    blob = uploaded(mail, alice)
    unused = mail.account(alice)
    assert isinstance(unused, AccountSeen)
    assert unused.used_bytes == 0
    one, more = mail.run(Append(alice, (Item(blob=blob),)), Append(alice, (Item(blob=blob),)))
    assert isinstance(one, Done)
    assert more == Refusal("OVER_QUOTA")
    used = mail.account(alice)
    assert isinstance(used, AccountSeen)
    assert used.used_bytes == len(FIRST + LAST)


def test_a_dropped_upload_leaves_nothing(mail: ApplyDriver, alice: str) -> None:
    """Its parts go after their grace; one that is finished is not dropped."""
    begin(mail, alice, FIRST)
    mail.run(DropUpload(alice, ID))
    assert mail.run(UploadPart(alice, PART_MIN_BYTES, LAST, ID)) == [MISPLACED]
    assert after(mail, rules.BODY_GRACE_MS) == 0
    blob = uploaded(mail, alice)
    mail.run(DropUpload(alice, ID))
    assert mail.fetch(alice, blob) == FIRST + LAST


@pytest.mark.parametrize("parts", [(FIRST,), (FIRST, LAST)])
def test_an_upload_that_nobody_names_goes(
    mail: ApplyDriver, alice: str, parts: tuple[bytes, ...]
) -> None:
    """After a day, finished or not, and not before."""
    begin(mail, alice, *parts)
    assert after(mail, DAY_MS - 1) == len(parts)
    after(mail, DAY_MS)
    assert after(mail, DAY_MS + rules.BODY_GRACE_MS) == 0


def test_a_message_keeps_all_its_parts(mail: ApplyDriver, alice: str) -> None:
    """As long as it is there; another account cannot name them; with the last message they go."""
    mail.run(CreateAccount("bob"))
    blob = uploaded(mail, alice)
    assert mail.run(Append("bob", (Item(blob=blob),))) == [Refusal("BLOB_NOT_FOUND")]
    mail.run(Append(alice, (Item(blob=blob),)))
    assert after(mail, 2 * DAY_MS) == 2
    assert mail.fetch(alice, blob) == FIRST + LAST
    mail.run(Expunge(alice, Which(("1",))))
    after(mail, 30 * DAY_MS)
    assert after(mail, 30 * DAY_MS + rules.BODY_GRACE_MS) == 0
