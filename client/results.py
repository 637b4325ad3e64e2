"""What calls take and return where one message of mailraft.v1 does not say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from mailraft.client.failures import LevelNotMetError
from mailraft.client.options import MailboxRole
from mailraft.v1 import common_pb2, delivery_pb2, message_pb2
from mailraft.wire import errors


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whom a mail is for, where the account's id alone does not say enough.

    mailboxes: as in AsyncClient ("INBOX", a role or an id), none: the INBOX. keywords: besides
    those of the delivery. blob_id: bytes of this account instead of the delivery's.
    """

    account_id: str
    mailboxes: Sequence[str | MailboxRole] = ()
    keywords: Sequence[str] = ()
    blob_id: str = ""


@dataclass(frozen=True, slots=True)
class NewMessage:
    r"""A message to append. internal_time: None for the leader's time; one without a zone is local.

    deleted: with \Deleted set. Exactly one of raw and blob_id.
    """

    raw: bytes = b""
    keywords: Sequence[str] = ()
    internal_time: datetime | None = None
    deleted: bool = False
    blob_id: str = ""


@dataclass(frozen=True, slots=True)
class RecipientReceipt:
    """What became of a mail for one recipient: delivered if `error` is None.

    Under Ack.ACCEPTED the ids, memberships and state are not known yet, and empty.
    """

    account_id: str
    error: errors.MailraftError | None = None
    message_id: str = ""
    memberships: Sequence[message_pb2.Membership] = ()
    state: str = ""
    blob_id: str = ""
    thread_id: str = ""
    served: common_pb2.Served = field(default_factory=common_pb2.Served)

    @property
    def level_met(self) -> bool:
        """False if it is committed but not confirmed as far as `ack` asked."""
        return self.served.level_met != common_pb2.LEVEL_MET_NO


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one mail, for each recipient in the order of `to`.

    request_id: with it the same mail can be delivered again, to the same effect and no other.
    """

    request_id: bytes
    recipients: tuple[RecipientReceipt, ...]

    @property
    def failed(self) -> dict[str, errors.MailraftError]:
        """Account id to error, of those that did not get the mail."""
        return {each.account_id: each.error for each in self.recipients if each.error is not None}

    def raise_for_failures(self) -> None:
        """Raise the first error of a recipient, else LevelNotMetError if a level was not met."""
        for error in self.failed.values():
            raise error
        for each in self.recipients:
            if not each.level_met:
                raise LevelNotMetError(result=self)


@dataclass(frozen=True, slots=True)
class Page:
    """Messages at one state of the account. An empty next_page_token ends the list; a page that
    is short or empty does not.

    not_found_ids: of get_messages by ids. mailbox_id, uid_validity and total_messages (the filter
    not applied): of list_messages.
    """

    messages: Sequence[message_pb2.Message]
    next_page_token: str
    state: str
    served: common_pb2.Served
    not_found_ids: Sequence[str] = ()
    mailbox_id: str = ""
    uid_validity: int = 0
    total_messages: int = 0


def receipt_of(delivery: delivery_pb2.Delivery, result: delivery_pb2.DeliveryResult) -> Receipt:
    """The receipt of a delivery that was answered with this result."""
    pairs = zip(delivery.recipients[:], result.recipients[:], strict=True)
    told = [_recipient_receipt(asked.account_id, answer) for asked, answer in pairs]
    return Receipt(delivery.request_id, tuple(told))


def with_refused(
    request_id: bytes,
    told: Sequence[Recipient],
    receipt: Receipt | None,
    refused: Mapping[str, errors.MailraftError],
) -> Receipt:
    """A receipt of all in order, where some were refused before the mail was delivered."""
    rest = iter(() if receipt is None else receipt.recipients)
    recipients = tuple(
        RecipientReceipt(each.account_id, refused[each.account_id])
        if each.account_id in refused
        else next(rest)
        for each in told
    )
    return Receipt(request_id, recipients)


def _recipient_receipt(account_id: str, answer: delivery_pb2.RecipientResult) -> RecipientReceipt:
    if answer.code:
        error = errors.by_reason(
            answer.reason,
            answer.message,
            code=answer.code,
            retry_after_ms=answer.retry_after_ms or None,
        )
        return RecipientReceipt(account_id, error, served=answer.served)
    return RecipientReceipt(
        account_id,
        None,
        answer.message_id,
        answer.memberships,
        answer.state,
        answer.blob_id,
        answer.thread_id,
        answer.served,
    )
