"""MailboxService."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2
from mailraft.node.mailstore import queries
from mailraft.v1 import mailbox_pb2
from mailraft.wire import tokens

from . import changing, convert, levels, validate
from .base import REPLY_MAX_BYTES, Call, Service, Shards

_MASK = ("parent_id", "name", "role", "subscribed", "sort_order", "retention", "attributes")


class Mailboxes:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def service(self) -> Service:
        return Service(
            mailbox_pb2.DESCRIPTOR.services_by_name["MailboxService"],
            unary={
                "CreateMailbox": self.CreateMailbox,
                "GetMailbox": self.GetMailbox,
                "ListMailboxes": self.ListMailboxes,
                "UpdateMailbox": self.UpdateMailbox,
                "DeleteMailbox": self.DeleteMailbox,
            },
        )

    async def CreateMailbox(
        self, request: mailbox_pb2.CreateMailboxRequest, call: Call
    ) -> mailbox_pb2.CreateMailboxResponse:
        changing.check(request)
        asked = request.mailbox
        validate.mailbox_name(asked.name, "mailbox.name")
        validate.attributes(asked.attributes, "mailbox.attributes")
        action = command_pb2.CreateMailbox(
            account_id=request.account_id,
            parent=validate.mailbox_id(asked.parent_id) if asked.parent_id else 0,
            name=asked.name,
            role=validate.role(asked.role, "mailbox.role") if asked.role else 0,
            subscribed=asked.subscribed,
            sort_order=asked.sort_order,
            attributes=convert.attributes(asked.attributes.items()),
        )
        if asked.HasField("retention"):
            action.retention.CopyFrom(convert.retention(asked.retention))
        done = await changing.change(self._shards, request, call, "create_mailbox", action)
        return mailbox_pb2.CreateMailboxResponse(
            state=done.state,
            served=done.served,
            mailbox=convert.mailbox(done.reply.mailbox, done.reply.state),
        )

    async def GetMailbox(
        self, request: mailbox_pb2.GetMailboxRequest, call: Call
    ) -> mailbox_pb2.GetMailboxResponse:
        validate.account_id(request.account_id)
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        match request.WhichOneof("mailbox"):
            case "mailbox_id":
                number = validate.mailbox_id(request.mailbox_id)
                record = queries.mailbox(at.view, request.account_id, number)
            case "mailbox_role":
                role = validate.role(request.mailbox_role, "mailbox_role")
                record = queries.mailbox_by_role(at.view, request.account_id, role)
            case _:
                raise validate.bad("mailbox_id", "mailbox_id or mailbox_role")
        state = queries.account_state(at.view, request.account_id)
        words = queries.keywords_in_use(at.view, request.account_id, record.mailbox)
        return mailbox_pb2.GetMailboxResponse(
            state=at.state, served=at.served, mailbox=convert.mailbox(record, state, words)
        )

    async def UpdateMailbox(
        self, request: mailbox_pb2.UpdateMailboxRequest, call: Call
    ) -> mailbox_pb2.UpdateMailboxResponse:
        changing.check(request)
        action = _update(request)
        done = await changing.change(
            self._shards, request, call, "update_mailbox", action, if_object=request.mailbox.etag
        )
        view = self._shards.replica_for_account(request.account_id).view
        words = queries.keywords_in_use(view, request.account_id, action.mailbox)
        return mailbox_pb2.UpdateMailboxResponse(
            state=done.state,
            served=done.served,
            mailbox=convert.mailbox(done.reply.mailbox, done.reply.state, words),
        )

    async def DeleteMailbox(
        self, request: mailbox_pb2.DeleteMailboxRequest, call: Call
    ) -> mailbox_pb2.DeleteMailboxResponse:
        changing.check(request)
        action = command_pb2.DeleteMailbox(
            account_id=request.account_id,
            mailbox=validate.mailbox_id(request.mailbox_id),
            force=request.force,
        )
        done = await changing.change(
            self._shards, request, call, "delete_mailbox", action, if_object=request.etag
        )
        return mailbox_pb2.DeleteMailboxResponse(state=done.state, served=done.served)

    async def ListMailboxes(
        self, request: mailbox_pb2.ListMailboxesRequest, call: Call
    ) -> mailbox_pb2.ListMailboxesResponse:
        """In the order of creation, which is the order of their ids as numbers."""
        validate.account_id(request.account_id)
        bound = ("ListMailboxes", request.account_id)
        after = 0
        if request.page_token:
            after = int.from_bytes(tokens.open_page_token(request.page_token, bound))
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        state = queries.account_state(at.view, request.account_id)
        found, following = queries.mailboxes(
            at.view, request.account_id, after, validate.page_size(request.page_size)
        )
        response = mailbox_pb2.ListMailboxesResponse(state=at.state, served=at.served)
        left_bytes = REPLY_MAX_BYTES
        for record in found:
            words = queries.keywords_in_use(at.view, request.account_id, record.mailbox)
            shown = convert.mailbox(record, state, words)
            left_bytes -= shown.ByteSize() + 8
            if left_bytes < 0 and response.mailboxes:
                following = after
                break
            response.mailboxes.append(shown)
            after = record.mailbox
        if following:
            response.next_page_token = tokens.page_token(bound, following.to_bytes(4))
        return response


def _update(request: mailbox_pb2.UpdateMailboxRequest) -> command_pb2.UpdateMailbox:
    paths, asked = set(request.update_mask.paths), request.mailbox
    if not paths or not paths <= set(_MASK):
        raise validate.bad("update_mask", f"one or more of {', '.join(_MASK)}")
    action = command_pb2.UpdateMailbox(
        account_id=request.account_id, mailbox=validate.mailbox_id(asked.id)
    )
    if "parent_id" in paths:
        action.parent = validate.mailbox_id(asked.parent_id) if asked.parent_id else 0
    if "name" in paths:
        validate.mailbox_name(asked.name, "mailbox.name")
        action.name = asked.name
    if "role" in paths:
        action.role = validate.role(asked.role, "mailbox.role") if asked.role else 0
    if "subscribed" in paths:
        action.subscribed = asked.subscribed
    if "sort_order" in paths:
        action.sort_order = asked.sort_order
    if "retention" in paths:
        action.set_retention = True
        if asked.HasField("retention"):
            action.retention.CopyFrom(convert.retention(asked.retention))
    if "attributes" in paths:
        validate.attributes(asked.attributes, "mailbox.attributes")
        action.set_attributes = True
        action.attributes.extend(convert.attributes(asked.attributes.items()))
    return action
