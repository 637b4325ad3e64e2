"""BatchGetThreads (Thread/get, RFC 8621 section 3.1)."""

from __future__ import annotations

from mailraft.node.mailstore import thread_queries
from mailraft.v1 import message_service_pb2
from mailraft.wire import errors, tokens

from . import levels, validate
from .base import Call, Shards

THREADS_MAX = 100
# Messages of all threads of a call, each read: about 100 ms of a node's time.
MESSAGES_MAX = 10_000


class Threads:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def BatchGetThreads(
        self, request: message_service_pb2.BatchGetThreadsRequest, call: Call
    ) -> message_service_pb2.BatchGetThreadsResponse:
        """Raises LIMIT_REACHED for threads that are too long together: ask for fewer."""
        validate.account_id(request.account_id)
        if not 1 <= len(request.thread_ids) <= THREADS_MAX:
            raise validate.bad("thread_ids", f"1 to {THREADS_MAX}")
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        response = message_service_pb2.BatchGetThreadsResponse(state=at.state, served=at.served)
        left = MESSAGES_MAX
        for asked in request.thread_ids:
            try:
                number = tokens.parse_thread_id(asked)
            except ValueError:
                number = 0
            found = thread_queries.members(at.view, request.account_id, number) if number else []
            if not found:
                response.not_found_ids.append(asked)
                continue
            left -= len(found)
            if left < 0:
                raise errors.LimitReachedError(
                    f"at most {MESSAGES_MAX} messages in the threads of one call",
                    metadata={"limit": "messages_in_threads_per_call", "max": str(MESSAGES_MAX)},
                )
            response.threads.add(
                id=asked, message_ids=[tokens.message_id(each.message) for each in found]
            )
        return response
