"""The API people program against: AsyncClient, and Client for threads and gevent.

    async with AsyncClient("127.0.0.1:7400", certs=".mailraft/certs") as mail:
        await mail.create_account("alice")
        receipt = await mail.deliver(raw_bytes, to=["alice"])
        page = await mail.list_messages("alice", "INBOX", page_size=50)
        body = await mail.fetch_body("alice", page.messages[0].id)

`errors` has one class for each reason of the store; LevelNotMetError and IntegrityError are the
client's own. Accounts, mailboxes and messages are the messages of mailraft.v1.
"""

from mailraft.client.async_client import AsyncClient
from mailraft.client.failures import IntegrityError, LevelNotMetError
from mailraft.client.options import (
    Ack,
    Consistency,
    ListArgs,
    MailboxRole,
    MessageOrder,
    MessageView,
    ObjectType,
    ReadArgs,
    SearchArgs,
    WriteArgs,
)
from mailraft.client.results import NewMessage, Page, Receipt, Recipient, RecipientReceipt
from mailraft.client.session import Session
from mailraft.client.sync_client import Client
from mailraft.wire import errors
from mailraft.wire.errors import MailraftError

__all__ = [
    "Ack",
    "AsyncClient",
    "Client",
    "Consistency",
    "IntegrityError",
    "LevelNotMetError",
    "ListArgs",
    "MailboxRole",
    "MailraftError",
    "MessageOrder",
    "MessageView",
    "NewMessage",
    "ObjectType",
    "Page",
    "ReadArgs",
    "Receipt",
    "Recipient",
    "RecipientReceipt",
    "SearchArgs",
    "Session",
    "WriteArgs",
    "errors",
]
