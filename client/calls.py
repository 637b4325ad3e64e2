"""Arguments of calls into messages of mailraft.v1: what AsyncClient and Client both need. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf import field_mask_pb2

from mailraft.client import content
from mailraft.client.failures import IntegrityError, LevelNotMetError
from mailraft.client.ids import request_ids
from mailraft.client.options import (
    Consistency,
    ListArgs,
    MailboxRole,
    MessageOrder,
    MessageView,
    ObjectType,
    ReadArgs,
    ReadLevel,
    SearchArgs,
    WriteArgs,
    WriteLevel,
)
from mailraft.client.results import NewMessage, Page, Recipient
from mailraft.client.session import Session
from mailraft.v1 import (
    account_pb2,
    blob_pb2,
    common_pb2,
    delivery_pb2,
    mailbox_pb2,
    message_pb2,
    message_service_pb2,
    search_pb2,
)
from mailraft.wire import bodies, limits

INBOX = "INBOX"
DEFAULT = common_pb2.CONSISTENCY_UNSPECIFIED  # the cluster's
MAILBOXES_PAGE = limits.PAGE_SIZE_MAX
GET_BLOB_MAX_BYTES = 1024 * 1024  # of GetBlob, a call; the server lowers what is above
COMMANDS_MAX = 1_000_000  # of one call about UIDs: far above any mailbox
WAIT_S = 60.0  # of wait_committed
Messages = Sequence[str] | common_pb2.UidSet
"""Messages by their ids, or by UIDs of one mailbox."""
Mailbox = str | MailboxRole
"""A mailbox by its id or its role; "INBOX" in any case is the role (an id is never that short)."""


def read_options(
    account_id: str, session: Session, args: ReadArgs, default: ReadLevel
) -> common_pb2.ReadOptions:
    """What a read asks for: its own level, else the client's, else SESSION at what the session saw.

    One of no account ("") asks for the cluster's default.
    """
    if "consistency" not in args:
        args = {**default, **args}
    level: int = args.get("consistency", Consistency.SESSION if account_id else DEFAULT)
    min_state = args.get("min_state", "")
    if level == Consistency.SESSION and not min_state:
        min_state = session.state_of(account_id)
        if not min_state and session.is_gone(account_id):
            level = Consistency.LINEARIZABLE
    return common_pb2.ReadOptions(
        consistency=common_pb2.Consistency.ValueType(level),
        replicas=args.get("replicas", 0),
        min_state=min_state,
        max_staleness_ms=args.get("max_staleness_ms", 0),
        require_replica=args.get("replica", 0),
    )


def write_options(args: WriteArgs, default: WriteLevel) -> common_pb2.WriteOptions:
    """What a mutation asks for: its own level, else the client's."""
    if "ack" not in args and default:
        args = {**default, **args}
    ack: int = args.get("ack", common_pb2.ACK_LEVEL_UNSPECIFIED)
    return common_pb2.WriteOptions(
        ack=common_pb2.AckLevel.ValueType(ack),
        replicas=args.get("replicas", 0),
        if_in_state=args.get("if_in_state", ""),
    )


def request_id(args: WriteArgs) -> bytes:
    """The request id of a mutation: the caller's, or a new one."""
    return args.get("request_id") or request_ids.next()


def role_of(mailbox: Mailbox) -> common_pb2.MailboxRole.ValueType | None:
    """The role that is meant, None if it is an id."""
    if isinstance(mailbox, MailboxRole):
        return common_pb2.MailboxRole.ValueType(mailbox)
    return common_pb2.MAILBOX_ROLE_INBOX if mailbox.upper() == INBOX else None


_NamesMailbox = (
    mailbox_pb2.GetMailboxRequest
    | message_service_pb2.ListMessagesRequest
    | message_service_pb2.ListUidsRequest
)


def name_mailbox(request: _NamesMailbox, mailbox: Mailbox) -> None:
    """Says in the request which mailbox is meant."""
    role = role_of(mailbox)
    if role is None:
        request.mailbox_id = str(mailbox)
    else:
        request.mailbox_role = role


def target(mailbox: Mailbox) -> message_pb2.MailboxTarget:
    """Where a message is put."""
    role = role_of(mailbox)
    if role is None:
        return message_pb2.MailboxTarget(mailbox_id=str(mailbox))
    return message_pb2.MailboxTarget(role=role)


def account(
    max_bytes: int | None,
    max_messages: int | None,
    attributes: Mapping[str, str] | None,
    undelete_window_ms: int | None,
    etag: str = "",
) -> account_pb2.Account:
    """An account with what is given and not None."""
    quota = None
    if max_bytes is not None or max_messages is not None:
        quota = account_pb2.Quota(max_bytes=max_bytes or 0, max_messages=max_messages or 0)
    return account_pb2.Account(
        quota=quota,
        attributes=attributes,
        undelete_window_ms=undelete_window_ms or 0,
        etag=etag,
    )


def account_mask(
    max_bytes: int | None,
    max_messages: int | None,
    attributes: Mapping[str, str] | None,
    undelete_window_ms: int | None,
) -> field_mask_pb2.FieldMask:
    """The fields of `account` that are given."""
    given = {
        "quota.max_bytes": max_bytes,
        "quota.max_messages": max_messages,
        "attributes": attributes,
        "undelete_window_ms": undelete_window_ms,
    }
    return field_mask_pb2.FieldMask(
        paths=[name for name, value in given.items() if value is not None]
    )


def recipients(to: Sequence[str | Recipient]) -> list[Recipient]:
    """All of them by their long name."""
    if isinstance(to, str):
        raise TypeError("`to` is a list of recipients, not one string")
    return [Recipient(each) if isinstance(each, str) else each for each in to]


def delivery(
    raw: bytes,
    to: Sequence[str | Recipient],
    keywords: Sequence[str],
    internal_time: datetime | None,
    args: WriteArgs,
    packing: content.Packing,
) -> delivery_pb2.Delivery:
    """One mail for some recipients."""
    made = delivery_pb2.Delivery(
        request_id=request_id(args), internal_time_ms=time_ms(internal_time)
    )
    bytes_are_there = bool(raw)
    for one in recipients(to):
        told = made.recipients.add(account_id=one.account_id)
        if one.blob_id:
            told.blob_id = one.blob_id
        else:
            bytes_are_there = True
        if one.mailboxes:
            told.targets.extend([target(mailbox) for mailbox in one.mailboxes])
        if keywords or one.keywords:
            told.keywords.extend(dict.fromkeys((*keywords, *one.keywords)))
    if bytes_are_there:
        content.encode_into(made.content, raw, packing)
    return made


def append_item(
    message: bytes | NewMessage, mailbox: Mailbox, packing: content.Packing
) -> delivery_pb2.AppendItem:
    """One message to append."""
    one = message if isinstance(message, NewMessage) else NewMessage(message)
    item = delivery_pb2.AppendItem(
        targets=[target(mailbox)],
        keywords=one.keywords,
        internal_time_ms=time_ms(one.internal_time),
        deleted=one.deleted,
    )
    if one.blob_id:
        item.blob_id = one.blob_id
    else:
        content.encode_into(item.content, one.raw, packing)
    return item


def selector(messages: Messages) -> common_pb2.MessageSelector:
    """Which messages are meant: some ids, or UIDs of one mailbox."""
    if isinstance(messages, common_pb2.UidSet):
        return common_pb2.MessageSelector(uid_set=messages)
    return common_pb2.MessageSelector(ids=message_ids(messages))


def message_ids(messages: Sequence[str]) -> common_pb2.MessageIds:
    """Ids, as a message."""
    if isinstance(messages, str):
        raise TypeError("`messages` is a list of ids, not one string")
    return common_pb2.MessageIds(ids=messages)


def object_types(types: Sequence[ObjectType]) -> list[common_pb2.ObjectType.ValueType]:
    """Kinds of object; none: all."""
    return [common_pb2.ObjectType.ValueType(each) for each in types]


def update_mailbox(
    account_id: str, mailbox_id: str, values: Mapping[str, Any], etag: str
) -> mailbox_pb2.UpdateMailboxRequest:
    """Changes the fields of a mailbox that are not None."""
    given = {name: value for name, value in values.items() if value is not None}
    return mailbox_pb2.UpdateMailboxRequest(
        account_id=account_id,
        mailbox=mailbox_pb2.Mailbox(id=mailbox_id, etag=etag, **given),
        update_mask=field_mask_pb2.FieldMask(paths=list(given)),
    )


def search(
    account_id: str,
    only: search_pb2.MessageFilter | None,
    mailbox_id: str,
    page_token: str,
    args: SearchArgs,
) -> search_pb2.SearchMessagesRequest:
    """One page of a search."""
    return search_pb2.SearchMessagesRequest(
        account_id=account_id,
        mailbox_id=mailbox_id,
        filter=only,
        sort=args.get("sort", ()),
        page_size=args.get("page_size", 0),
        page_token=page_token,
        view=message_pb2.MessageView.ValueType(args.get("view", MessageView.BASIC)),
    )


def get_blob(
    account_id: str, message_id: str, offset: int, length: int | None
) -> blob_pb2.GetBlobRequest:
    """Bytes of a message, as many as one call brings."""
    return blob_pb2.GetBlobRequest(
        account_id=account_id,
        message_id=message_id,
        offset_bytes=offset,
        length_bytes=0 if length is None else min(length, GET_BLOB_MAX_BYTES),
        accept_zstd=True,
        accept_dictionary=bodies.MAIL_DICTIONARY,
    )


def missing_bytes(size_bytes: int, offset: int, length: int | None, got_bytes: int) -> int:
    """How much of an asked range is still to come; raises IntegrityError if too much came."""
    left = max(0, size_bytes - offset)
    missing = (left if length is None else min(length, left)) - got_bytes
    if missing < 0:
        raise IntegrityError(f"{-missing} bytes more came than were asked")
    return missing


def download(
    account_id: str, message_id: str, offset: int, length: int | None
) -> blob_pb2.DownloadBlobRequest:
    """Bytes of a message, all that are asked."""
    return blob_pb2.DownloadBlobRequest(
        account_id=account_id,
        message_id=message_id,
        offset_bytes=offset,
        length_bytes=length or 0,
    )


def list_messages(
    account_id: str, mailbox: Mailbox, page_token: str, args: ListArgs
) -> message_service_pb2.ListMessagesRequest:
    """One page of a mailbox."""
    request = message_service_pb2.ListMessagesRequest(
        account_id=account_id,
        order=message_pb2.MessageOrder.ValueType(args.get("order", MessageOrder.UID_ASC)),
        page_size=args.get("page_size", 0),
        page_token=page_token,
        view=message_pb2.MessageView.ValueType(args.get("view", MessageView.BASIC)),
        filter=args.get("only"),
        uid_validity=args.get("uid_validity", 0),
    )
    name_mailbox(request, mailbox)
    return request


def page_of(reply: message_service_pb2.ListMessagesResponse) -> Page:
    """The page that a ListMessages answered."""
    return Page(
        reply.messages,
        reply.next_page_token,
        reply.state,
        reply.served,
        mailbox_id=reply.mailbox_id,
        uid_validity=reply.uid_validity,
        total_messages=reply.total_messages,
    )


Result = TypeVar("Result")


def met(served: common_pb2.Served, result: Result) -> Result:
    """The result of a mutation; raises LevelNotMetError with it if its level was not reached."""
    if served.level_met == common_pb2.LEVEL_MET_NO:
        raise LevelNotMetError(result=result)
    return result


def time_ms(when: datetime | None) -> int:
    """Milliseconds since 1970; 0 (the leader's time) for None."""
    return 0 if when is None else round(when.timestamp() * 1000)
