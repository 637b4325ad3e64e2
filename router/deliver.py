"""Deliveries: split by shard, carried by the lanes, put together again; what may be is retried."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from mailraft.router.failures import NoAnswerError
from mailraft.router.fleet import Fleet
from mailraft.router.goals import delivery_goal
from mailraft.router.lanes import DeliverLane, Lanes
from mailraft.router.tries import Tries
from mailraft.v1 import common_pb2, delivery_pb2, error_pb2
from mailraft.wire import errors, limits, tracing

# What a recipient's result may say that is worth another try; the rest is its answer.
RETRIED = frozenset(
    {
        error_pb2.ERROR_REASON_NOT_LEADER,
        error_pb2.ERROR_REASON_NO_LEADER,
        error_pb2.ERROR_REASON_STALE_ROUTE,
        error_pb2.ERROR_REASON_SHUTTING_DOWN,
        error_pb2.ERROR_REASON_QUORUM_UNAVAILABLE,
        error_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        error_pb2.ERROR_REASON_COMMIT_UNKNOWN,
    }
)


class Deliverer:
    """Delivers one mail at a time, as its callers see it."""

    def __init__(self, fleet: Fleet, lanes: Lanes) -> None:
        self._fleet, self._lanes = fleet, lanes

    async def deliver(
        self,
        delivery: delivery_pb2.Delivery,
        write_options: common_pb2.WriteOptions | None,
        deadline_s: float,
    ) -> delivery_pb2.DeliveryResult:
        """An answer for each recipient, in order; errors are in the answers."""
        with tracing.span("deliver", parent=delivery.traceparent):
            return await self._deliver(delivery, write_options, deadline_s)

    async def _deliver(
        self,
        delivery: delivery_pb2.Delivery,
        write_options: common_pb2.WriteOptions | None,
        deadline_s: float,
    ) -> delivery_pb2.DeliveryResult:
        recipients = len(delivery.recipients)
        if recipients == 1:  # nearly all of them
            shard = self._fleet.table.topology.shard_of(delivery.recipients[0].account_id)
            part = _Part(delivery, [0], [None])
            await self._to_shard(shard, part, write_options, deadline_s)
            return _joined(part.results)
        part = _Part(delivery, list(range(recipients)), [None] * recipients)
        wrong = _wrong_form(delivery)
        if wrong is not None:
            part.refuse(wrong)
        else:
            await self._split(part, write_options, deadline_s)
        return _joined(part.results)

    async def _split(
        self, part: _Part, write_options: common_pb2.WriteOptions | None, deadline_s: float
    ) -> None:
        topology = self._fleet.table.topology
        by_shard: dict[int, list[int]] = {}
        for index in part.indexes:
            account_id = part.delivery.recipients[index].account_id
            by_shard.setdefault(topology.shard_of(account_id), []).append(index)
        async with asyncio.TaskGroup() as group:
            for shard, indexes in by_shard.items():
                one = _Part(part.delivery, indexes, part.results)
                group.create_task(self._to_shard(shard, one, write_options, deadline_s))

    async def _to_shard(
        self,
        shard: int,
        part: _Part,
        write_options: common_pb2.WriteOptions | None,
        deadline_s: float,
    ) -> None:
        """Fill the results of a part whose recipients live in one shard."""
        goal = delivery_goal(
            self._fleet.table.topology,
            shard,
            write_options,
            repeatable=bool(part.delivery.request_id),
        )
        tries = Tries(self._fleet, goal, deadline_s)
        epoch = self._fleet.table.epoch
        try:
            while True:
                place = tries.next()
                lane = self._lanes.deliver(place, shard, write_options)
                try_until_s = asyncio.get_running_loop().time() + tries.timeout_s()
                with tracing.span("try", {"shard": shard, "node": place.address}):
                    error = await part.try_once(lane, try_until_s, tries.patience(place))
                if error is None:
                    tries.succeeded(place)
                    return
                if isinstance(error, NoAnswerError | errors.CommitUnknownError):
                    self._lanes.trouble(shard)
                await tries.failed(place, error)
                if epoch != self._fleet.table.epoch:
                    epoch = self._fleet.table.epoch
                    if part.shards(self._fleet) != {shard}:
                        await self._split(part, write_options, deadline_s)
                        return
        except errors.MailraftError as last:
            part.refuse(last)


class _Part:
    """Recipients of a delivery (by index) that still lack a result."""

    def __init__(
        self,
        delivery: delivery_pb2.Delivery,
        indexes: list[int],
        results: list[delivery_pb2.RecipientResult | None],
    ) -> None:
        self.delivery, self.indexes, self.results = delivery, indexes, results

    async def try_once(
        self, lane: DeliverLane, deadline_s: float, patience: AbstractAsyncContextManager[None]
    ) -> errors.MailraftError | None:
        """Fill in what is settled; the error that matters most of what is not."""
        message = self._message()
        message.traceparent = tracing.traceparent() or message.traceparent
        try:
            async with patience:
                answer = await lane.submit(
                    message, message.ByteSize(), deadline_s, units=len(message.recipients)
                )
        except errors.MailraftError as error:
            return error
        if len(answer.recipients) != len(self.indexes):
            return errors.InternalError(
                f"{len(answer.recipients)} results for {len(self.indexes)} recipients"
            )
        return self._settle(answer.recipients[:])

    def refuse(self, error: errors.MailraftError) -> None:
        for index in self.indexes:
            self.results[index] = delivery_pb2.RecipientResult(
                code=error.code.value[0],
                reason=error.reason,
                message=error.message,
                retry_after_ms=error.retry_after_ms or 0,
            )

    def shards(self, fleet: Fleet) -> set[int]:
        shard_of = fleet.table.topology.shard_of
        return {shard_of(self.delivery.recipients[index].account_id) for index in self.indexes}

    def _message(self) -> delivery_pb2.Delivery:
        if len(self.indexes) == len(self.delivery.recipients):
            return self.delivery
        message = delivery_pb2.Delivery()
        message.CopyFrom(self.delivery)
        del message.recipients[:]
        message.recipients.extend(self.delivery.recipients[index] for index in self.indexes)
        return message

    def _settle(
        self, answers: Sequence[delivery_pb2.RecipientResult]
    ) -> errors.MailraftError | None:
        open_indexes: list[int] = []
        worst: errors.MailraftError | None = None
        for index, answer in zip(self.indexes, answers, strict=True):
            if answer.reason in RETRIED:
                open_indexes.append(index)
                # A fate that is not known decides what may be said in the end.
                if worst is None or answer.reason == error_pb2.ERROR_REASON_COMMIT_UNKNOWN:
                    worst = errors.by_reason(
                        answer.reason,
                        answer.message,
                        code=answer.code,
                        retry_after_ms=answer.retry_after_ms or None,
                    )
            else:
                self.results[index] = answer
        self.indexes = open_indexes
        return worst


def _wrong_form(delivery: delivery_pb2.Delivery) -> errors.MailraftError | None:
    """What no node could see of its part: too many recipients, or one of them twice.

    Either refuses the whole delivery, as at a node; one that is split must not do more.
    """
    names = [each.account_id for each in delivery.recipients]
    if len(names) > limits.RECIPIENTS_PER_DELIVERY_MAX:
        what = f"1 to {limits.RECIPIENTS_PER_DELIVERY_MAX}"
    elif len(set(names)) != len(names):
        what = "without repetition"
    else:
        return None
    return errors.BadFieldError(f"recipients: {what}", fields={"recipients": what})


def _joined(
    results: Sequence[delivery_pb2.RecipientResult | None],
) -> delivery_pb2.DeliveryResult:
    joined = delivery_pb2.DeliveryResult()
    joined.recipients.extend([each for each in results if each is not None])
    return joined
