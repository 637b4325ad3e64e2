"""MailboxService. Changing and deleting mailboxes is not there yet."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2
from mailraft.node.mailstore import queries
from mailraft.v1 import mailbox_pb2
from mailraft.wire import errors, tokens

from . import convert, levels, mutations, validate
from .base import REPLY_MAX_BYTES, Call, Service, Shards


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
            },
            later={
                "UpdateMailbox": "planned with renaming",
                "DeleteMailbox": "planned with deletion in bounded steps",
            },
        )

    async def CreateMailbox(
        self, request: mailbox_pb2.CreateMailboxRequest, call: Call
    ) -> mailbox_pb2.CreateMailboxResponse:
        validate.account_id(request.account_id)
        validate.request_id(request.request_id)
        levels.check_write(request.write_options)
        asked = request.mailbox
        if asked.HasField("retention"):
            raise errors.UnimplementedError("mailbox.retention is planned with retention")
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
        content = action.SerializeToString(deterministic=True)
        if_in_state = levels.if_in_state(request.write_options)
        if if_in_state is not None:
            action.if_in_state.CopyFrom(if_in_state)
        command = command_pb2.Command(
            request_id=request.request_id,
            fingerprint=mutations.fingerprint("create_mailbox", content),
            create_mailbox=action,
        )
        done = await mutations.mutate(self._shards, request.account_id, command, call)
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
        return mailbox_pb2.GetMailboxResponse(
            state=at.state, served=at.served, mailbox=convert.mailbox(record, state)
        )

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
            shown = convert.mailbox(record, state)
            left_bytes -= shown.ByteSize() + 8
            if left_bytes < 0 and response.mailboxes:
                following = after
                break
            response.mailboxes.append(shown)
            after = record.mailbox
        if following:
            response.next_page_token = tokens.page_token(bound, following.to_bytes(4))
        return response
