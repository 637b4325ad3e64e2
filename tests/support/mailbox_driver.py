"""What the contract tests talk to, so that the same tests can run against a state machine alone,
a node and a cluster. Everything here is plain data: no record, no stub, no id of one level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

START_MS = 1_750_000_000_000  # where the clocks of tests begin
DAY_MS = 24 * 3600 * 1000
INBOX_ROLE = 1


def request_id(number: int, time_ms: int = START_MS) -> bytes:
    """A UUIDv7 (RFC 9562 section 5.7) that is the same in every run."""
    tail = number.to_bytes(10, "big")
    return (
        time_ms.to_bytes(6, "big")
        + bytes((0x70 | tail[0] & 0x0F, tail[1], 0x80 | tail[2] & 0x3F))
        + tail[3:]
    )


# ---- calls: values, so that several can travel together --------------------------------------


@dataclass(frozen=True, slots=True)
class CreateAccount:
    account: str
    quota_bytes: int = 0
    quota_messages: int = 0
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class SetQuota:
    account: str
    quota_bytes: int = 0
    quota_messages: int = 0
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class CreateMailbox:
    account: str
    name: str
    parent: str = ""
    role: int = 0
    request: bytes = b""
    rule: Rule | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """How long and how many messages stay in a mailbox."""

    expunge_after_ms: int = 0
    messages_max: int = 0
    undelete_window_ms: int | None = None


@dataclass(frozen=True, slots=True)
class UpdateMailbox:
    """None: as it is."""

    account: str
    mailbox: str
    name: str | None = None
    parent: str | None = None  # "": to the top
    role: int | None = None
    subscribed: bool | None = None
    rule: Rule | None = None
    if_object: State | None = None
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class DeleteMailbox:
    account: str
    mailbox: str
    force: bool = False
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class DeleteAccount:
    account: str
    force: bool = False
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class To:
    account: str
    mailboxes: tuple[str, ...] = ()  # ids; none: the inbox
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deliver:
    raw: bytes
    to: tuple[To, ...]
    request: bytes = b""
    received_ms: int = 0
    message_id: str = ""
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    raw: bytes = b""
    blob: str = ""  # instead of raw: a body that the account may read
    mailboxes: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    received_ms: int = 0
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Append:
    account: str
    items: tuple[Item, ...]
    request: bytes = b""
    if_in_state: State | None = None


@dataclass(frozen=True, slots=True)
class Which:
    """Messages by id, or by UID of a mailbox."""

    ids: tuple[str, ...] = ()
    mailbox: str = ""
    uids: tuple[tuple[int, int], ...] = ()
    uid_validity: int = 0  # 0: the one that the mailbox has


@dataclass(frozen=True, slots=True)
class ModifyKeywords:
    account: str
    which: Which
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    replace: tuple[str, ...] | None = None
    unchanged_since: int | None = None
    deleted: bool | None = None
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class UpdateMemberships:
    account: str
    which: Which
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    deleted: tuple[tuple[str, bool], ...] = ()
    unchanged_since: int | None = None
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class Move:
    account: str
    which: Which
    target: str
    source: str = ""
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class Copy:
    account: str
    which: Which
    target: str
    duplicate: bool = False
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class Expunge:
    account: str
    which: Which
    only_deleted: bool = False
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class Undelete:
    """By id; without ids what was expunged since a time, from a mailbox or from any."""

    account: str
    ids: tuple[str, ...] = ()
    mailbox: str = ""
    since_ms: int = 0
    target: str = ""
    request: bytes = b""


@dataclass(frozen=True, slots=True)
class BeginUpload:
    """An upload is named by its request, within its account."""

    account: str
    raw: bytes  # what is going to come
    request: bytes


@dataclass(frozen=True, slots=True)
class UploadPart:
    account: str
    offset: int
    data: bytes
    request: bytes


@dataclass(frozen=True, slots=True)
class DropUpload:
    account: str
    request: bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """From the beginning to the end, as callers of the API do it."""

    account: str
    raw: bytes
    request: bytes


Call = (
    CreateAccount
    | SetQuota
    | DeleteAccount
    | CreateMailbox
    | UpdateMailbox
    | DeleteMailbox
    | Deliver
    | Append
    | ModifyKeywords
    | UpdateMemberships
    | Move
    | Copy
    | Expunge
    | Undelete
    | BeginUpload
    | UploadPart
    | DropUpload
    | Upload
)

# ---- outcomes --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class State:
    """Ordered as the states of an account are."""

    incarnation: tuple[int, int]
    modseq: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The name of an ErrorReason without its prefix."""

    reason: str


@dataclass(frozen=True, slots=True)
class Place:
    mailbox: str
    uid_validity: int
    uid: int


@dataclass(frozen=True, slots=True)
class Stored:
    message: str
    thread: str
    blob: str
    modseq: int
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    message: str
    modseq: int
    keywords: tuple[str, ...] = ()  # of ModifyKeywords
    deleted: bool = False
    places: tuple[Place, ...] = ()  # of UpdateMemberships


@dataclass(frozen=True, slots=True)
class Mapped:
    message: str
    source_uid: int
    place: Place
    made: str = ""  # of a duplicate


@dataclass(frozen=True, slots=True)
class Done:
    state: State
    mailbox: str = ""  # of CreateMailbox
    stored: tuple[Stored, ...] = ()  # of Append; of Deliver in Delivered
    changed: tuple[Changed, ...] = ()
    modified: tuple[str, ...] = ()  # ids that failed unchanged_since
    missing: tuple[str, ...] = ()  # ids that name nothing
    mapped: tuple[Mapped, ...] = ()
    destroyed: tuple[str, ...] = ()
    vanished: tuple[tuple[int, int], ...] = ()
    restored: tuple[str, ...] = ()
    rest: int = 0  # by UID: the first that was not reached
    offset: int = 0  # of an upload: what is there
    blob: str = ""  # of an upload, once all is there


@dataclass(frozen=True, slots=True)
class Delivered:
    each: tuple[Done | Refusal, ...]  # one a recipient, in order


Outcome = Done | Delivered | Refusal

# ---- what can be seen ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AccountSeen:
    state: State
    used_bytes: int
    used_messages: int


@dataclass(frozen=True, slots=True)
class MailboxSeen:
    id: str
    parent: str
    name: str
    role: int
    uid_validity: int
    uid_next: int
    highest_modseq: int
    total: int
    unseen: int
    size_bytes: int
    deleted: int = 0
    keywords: tuple[str, ...] = ()
    object_modseq: int = 0


@dataclass(frozen=True, slots=True)
class MessageSeen:
    id: str
    blob: str
    thread: str
    uid: int
    modseq: int
    size_bytes: int
    keywords: tuple[str, ...]
    received_ms: int
    deleted: bool = False  # in the mailbox that was listed
    mailboxes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    modseq: int
    changes: tuple[tuple[str, str, str], ...]  # (object, created | updated | destroyed, id)


class Driver(Protocol):
    """A mail store under test."""

    def run(self, *calls: Call) -> list[Outcome]:
        """Carries out calls that travel together, in order."""

    def at(self, time_ms: int) -> None:
        """Sets the wall clock of whoever proposes."""

    def work(self) -> int:
        """Lets all work that is due by now be done; how many steps it took."""

    def message(self, account: str, message: str) -> MessageSeen | Refusal:
        """By id; uid 0."""

    def body_count(self) -> int:
        """How many bodies are stored, referred to or not."""

    def account(self, account: str) -> AccountSeen | Refusal: ...

    def mailboxes(self, account: str) -> Sequence[MailboxSeen]: ...

    def messages(
        self, account: str, mailbox: str, *, order: str = "uid", page_size: int = 3
    ) -> Sequence[MessageSeen]:
        """All messages of a mailbox, page by page. Orders: uid, -uid, received, -received."""

    def uids(self, account: str, mailbox: str) -> Sequence[tuple[int, int]]: ...

    def fetch(self, account: str, blob: str) -> bytes | Refusal:
        """The raw bytes."""

    def changes(self, account: str) -> Sequence[Change]:
        """The whole change feed, oldest first."""

    def audit(self) -> None:
        """Fails unless everything that is counted equals a full scan."""
