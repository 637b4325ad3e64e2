"""WaitCommitted: what became of a mutation, notably one that was only accepted."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2
from mailraft.node.mailstore import queries, rules, shard_clock
from mailraft.node.mailstore.errors import Refused
from mailraft.v1 import common_pb2, error_pb2, message_service_pb2
from mailraft.wire import errors

from . import convert, levels, mutations, validate
from .base import Call, Shards

_LEVELS = (common_pb2.CONSISTENCY_UNSPECIFIED, common_pb2.CONSISTENCY_LINEARIZABLE)


class WaitCommitted:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def WaitCommitted(
        self, request: message_service_pb2.WaitCommittedRequest, call: Call
    ) -> message_service_pb2.WaitCommittedResponse:
        """A barrier goes through the log behind all that this leader took before. Once it is
        applied, an entry that is not before it can never be committed: a later leader holds the
        barrier (Raft section 5.4, leader completeness), and at its index nothing else.
        """
        validate.account_id(request.account_id)
        validate.request_id(request.request_id)
        if request.read_options.consistency not in _LEVELS:
            raise validate.bad("read_options.consistency", "LINEARIZABLE, or unset")
        replica = self._shards.replica_for_account(request.account_id)
        levels.check_leading(replica)
        barrier = command_pb2.Command(read_barrier=command_pb2.ReadBarrier())
        try:
            committed = await mutations.propose(self._shards, replica, barrier, call)
        except errors.CommitUnknownError as error:
            error.detail = error_pb2.CommitUnknown(
                shard=replica.group, request_id=request.request_id
            )
            raise
        assert committed is not None
        point = await replica.read(common_pb2.CONSISTENCY_LOCAL, deadline_s=call.deadline_s)
        account = rules.account_key(request.account_id)
        known = shard_clock.remembers(point.view, request.request_id, account)
        response = message_service_pb2.WaitCommittedResponse(
            served=levels.served_read(self._shards, replica, point),
            outcome=message_service_pb2.WAIT_OUTCOME_COMMITTED
            if known
            else message_service_pb2.WAIT_OUTCOME_LOST,
        )
        response.served.consistency_asked = common_pb2.CONSISTENCY_LINEARIZABLE
        response.served.consistency_met = common_pb2.CONSISTENCY_LINEARIZABLE
        try:
            state = queries.account_state(point.view, request.account_id)
            response.state = convert.state_token(state)
        except Refused as refused:  # it was never created, or is deleted since
            if refused.reason != error_pb2.ERROR_REASON_ACCOUNT_NOT_FOUND:
                raise
        return response
