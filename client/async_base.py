"""What the calls of AsyncClient share.

Like every async_*.py that has a twin: run tools/gen_sync_client.py after a change.
"""

from __future__ import annotations

from typing import Any

from mailraft.client import calls
from mailraft.client.async_transport import AsyncTransport
from mailraft.client.content import Packing
from mailraft.client.failures import LevelNotMetError
from mailraft.client.ids import following_id
from mailraft.client.options import ReadArgs, WriteArgs
from mailraft.client.session import Session
from mailraft.client.settings import Settings
from mailraft.v1 import common_pb2
from mailraft.wire import errors


class AsyncBase:
    """Knows the transport and the session; its parts are put together in AsyncClient."""

    def __init__(self, settings: Settings, session: Session, compress: bool) -> None:
        self._settings, self._session, self._compress = settings, session, compress
        self._transport = AsyncTransport(settings)

    def _deadline_s(self, args: ReadArgs | WriteArgs) -> float:
        return args.get("deadline_s", self._settings.deadline_s)

    def _read_options(self, account_id: str, args: ReadArgs) -> common_pb2.ReadOptions:
        return calls.read_options(account_id, self._session, args, self._settings.reads)

    def _write_options(self, args: WriteArgs) -> common_pb2.WriteOptions:
        return calls.write_options(args, self._settings.writes)

    def _packing(self) -> Packing:
        return Packing(self._compress, self._transport.dictionary)

    async def _ask(self, request: Any) -> Any:
        return await self._transport.unary(request, self._settings.deadline_s)

    async def _read(self, request: Any, args: ReadArgs) -> Any:
        request.read_options.CopyFrom(self._read_options(request.account_id, args))
        try:
            reply = await self._transport.unary(request, self._deadline_s(args))
        except errors.StateTooOldError:
            self._session.forget(request.account_id)
            raise
        self._session.observe(request.account_id, reply.state)
        return reply

    async def _write(self, request: Any, args: WriteArgs) -> Any:
        request.request_id = calls.request_id(args)
        request.write_options.CopyFrom(self._write_options(args))
        reply = await self._transport.unary(request, self._deadline_s(args))
        self._session.observe(request.account_id, reply.state)
        return reply

    async def _write_all(self, request: Any, args: WriteArgs) -> Any:
        """As _write, again for the UIDs that one command did not reach; the replies as one.

        Each goes under a request id of its own that follows from the first, so that the whole can
        be repeated under that. Raises LevelNotMetError if one of them was not confirmed so far.
        """
        first, whole, unmet = calls.request_id(args), None, False
        for number in range(calls.COMMANDS_MAX):
            request.request_id = following_id(first, number)
            request.write_options.CopyFrom(self._write_options(args))
            if number:
                request.write_options.if_in_state = ""  # it was, when the first was done
            reply = await self._transport.unary(request, self._deadline_s(args))
            self._session.observe(request.account_id, reply.state)
            unmet = unmet or reply.served.level_met == common_pb2.LEVEL_MET_NO
            if whole is None:
                whole = type(reply)()
            whole.ClearField("remaining")
            whole.MergeFrom(reply)
            if not reply.HasField("remaining"):
                break
            request.messages.uid_set.CopyFrom(reply.remaining)
        if unmet:
            raise LevelNotMetError(result=whole)
        return whole
