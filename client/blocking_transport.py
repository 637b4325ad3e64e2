"""How Client reaches the cluster: blocking stubs, one call at a time, for threads and for gevent.

The router's Dispatcher needs an event loop, which a thread patched by gevent cannot run beside its
own. So this goes by its rules (router.attempts, places, seek, hedge) without it: each call travels
alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import grpc

from mailraft.client import blocking_watch
from mailraft.client.blocking_asks import BlockingAsks
from mailraft.client.blocking_nodes import BlockingNodes
from mailraft.client.content import Upload
from mailraft.client.settings import Settings
from mailraft.router import listing
from mailraft.router.attempts import Attempts, Goal, Target
from mailraft.router.deliver import RETRIED
from mailraft.router.goals import delivery_goal, forwarded, goal_of, read_anywhere, upload_goal
from mailraft.router.methods import METHODS, Method, Route, method_of
from mailraft.router.table import Place
from mailraft.v1 import blob_pb2, change_pb2, common_pb2, delivery_pb2, error_pb2
from mailraft.wire import errors, tracing

_DELIVER = METHODS["/mailraft.v1.MessageService/DeliverMessages"]
_UPLOAD = METHODS["/mailraft.v1.BlobService/UploadBlob"]

Result = TypeVar("Result")


class BlockingTransport:
    """Usable from several threads or greenlets."""

    def __init__(self, settings: Settings) -> None:
        self._nodes = BlockingNodes(settings)
        self._asks = BlockingAsks(self._nodes)
        self._direct = settings.direct

    @property
    def dictionary(self) -> int:
        """What all servers can open; none before the first call."""
        return self._nodes.dictionary

    def unary(self, request: Any, deadline_s: float) -> Any:
        """The reply to a request, after as many tries as it takes and the deadline allows."""
        method, end_s = method_of(request), time.monotonic() + deadline_s
        with tracing.span(method.name):
            return self._whole(method, request, end_s)

    def _whole(self, method: Method, request: Any, end_s: float) -> Any:
        if method.route is Route.EVERY_SHARD and self._direct:
            table = self._nodes.table
            return _run_without_waiting(listing.list_accounts(self._ask, table, request, end_s))
        return self._unary(method, request, end_s)

    def stream(self, request: Any, deadline_s: float) -> Generator[Any, None, None]:
        """The parts of a reply. A failed try is followed by another only before the first part."""
        method = method_of(request)

        def once(place: Place, _: float) -> tuple[str, Any, Any]:
            left_s = max(0.001, end_s - time.monotonic())
            parts = self._nodes.call(place.address, method, request, left_s)
            try:
                return place.address, parts, next(parts, None)
            except grpc.RpcError as error:
                raise self._nodes.failure(place.address, error) from None

        end_s = time.monotonic() + deadline_s
        goal = self._goal(method, request)
        address, parts, first = self._run(Attempts(goal, self._nodes.extra), end_s, once)
        try:
            if first is not None:
                yield first
            yield from parts
        except grpc.RpcError as error:
            raise self._nodes.failure(address, error) from None
        finally:
            parts.cancel()

    def watch(
        self, requests: Sequence[change_pb2.WatchRequest]
    ) -> Generator[change_pb2.WatchResponse, None, None]:
        """What is told of the accounts that are asked for, over one stream a node, until closed."""
        yield from blocking_watch.watch(self._nodes, requests)

    def upload(self, upload: Upload, deadline_s: float) -> blob_pb2.UploadBlobResponse:
        """One stream, to whoever leads. What breaks in its middle is its caller's to resume."""
        header = upload.header()

        def once(place: Place, _: float) -> blob_pb2.UploadBlobResponse:
            stream = itertools.chain((header,), upload.chunks())
            left_s = max(0.001, end_s - time.monotonic())
            try:
                reply = self._nodes.call(place.address, _UPLOAD, stream, left_s)
            except grpc.RpcError as error:
                raise self._nodes.failure(place.address, error) from None
            assert isinstance(reply, blob_pb2.UploadBlobResponse)
            return reply

        end_s = time.monotonic() + deadline_s
        goal = forwarded(_UPLOAD, header.header)
        if self._direct:
            shard = self._nodes.shard_of(header.header.account_id)
            goal = upload_goal(shard, repeatable=goal.repeatable)
        return self._run(Attempts(goal, self._nodes.extra), end_s, once)

    def apart(self, work: Callable[[], None]) -> None:
        """Work that takes a while."""
        work()

    def pause(self, pause_s: float) -> None:
        """Wait."""
        time.sleep(pause_s)

    def deliver(
        self,
        delivery: delivery_pb2.Delivery,
        write_options: common_pb2.WriteOptions,
        deadline_s: float,
    ) -> delivery_pb2.DeliveryResult:
        """One result a recipient, in their order. Those of one shard go together."""
        end_s = time.monotonic() + deadline_s
        by_shard: dict[int, list[int]] = {}
        for index, recipient in enumerate(delivery.recipients):
            shard = self._nodes.shard_of(recipient.account_id)
            by_shard.setdefault(shard, []).append(index)
        found: dict[int, delivery_pb2.RecipientResult] = {}
        with tracing.span("deliver", parent=delivery.traceparent):
            delivery.traceparent = tracing.traceparent() or delivery.traceparent
            late: list[tuple[int, list[int]]] = []
            for place, (shard, indexes) in enumerate(by_shard.items()):
                # One in trouble may not take the time of those behind it.
                share_s = (end_s - time.monotonic()) / (len(by_shard) - place)
                until_s = time.monotonic() + share_s
                found.update(self._deliver(delivery, indexes, shard, write_options, until_s))
                if time.monotonic() >= until_s:
                    late.append((shard, [at for at in indexes if found[at].reason in RETRIED]))
            for shard, indexes in late:
                if indexes and time.monotonic() < end_s:
                    again = self._deliver(delivery, indexes, shard, write_options, end_s)
                    _learn(found, again)
        results = [found[index] for index in range(len(delivery.recipients))]
        return delivery_pb2.DeliveryResult(recipients=results)

    def _unary(self, method: Method, request: Any, end_s: float) -> Any:
        attempts = Attempts(self._goal(method, request), self._nodes.extra)
        anywhere = read_anywhere(attempts.goal, method)

        def once(place: Place, timeout_s: float) -> Any:
            if anywhere and not attempts.count:
                return self._asks.anywhere(
                    place,
                    method,
                    request,
                    timeout_s,
                    partial(attempts.spare, lambda: self._nodes.choose(attempts)),
                )
            return self._once(attempts.goal, place, method, request, timeout_s)

        return self._run(attempts, end_s, once)

    def _once(
        self, goal: Goal, place: Place, method: Method, request: Any, timeout_s: float
    ) -> Any:
        if goal.target is Target.LEADER:
            return self._asks.leader(goal.shard, place, method, request, timeout_s)
        return self._nodes.unary(place.address, method, request, timeout_s)

    async def _ask(self, method: Method, request: Any, end_s: float) -> Any:
        """What listing asks of one shard. Never waits, so that no event loop is needed."""
        return self._unary(method, request, end_s)

    def _goal(self, method: Method, request: Any) -> Goal:
        if not self._direct:
            return forwarded(method, request)
        return goal_of(self._nodes.table.topology, method, request)

    def close(self) -> None:
        """Ends all calls and connections."""
        self._nodes.close()

    def _deliver(
        self,
        delivery: delivery_pb2.Delivery,
        indexes: list[int],
        shard: int,
        write_options: common_pb2.WriteOptions,
        end_s: float,
    ) -> dict[int, delivery_pb2.RecipientResult]:
        everybody = list(delivery.recipients)
        found: dict[int, delivery_pb2.RecipientResult] = {}
        pending = indexes
        request = delivery_pb2.DeliverMessagesRequest(write_options=write_options)
        request.deliveries.append(delivery)
        goal = forwarded(_DELIVER, request)
        if self._direct:
            topology = self._nodes.table.topology
            goal = delivery_goal(topology, shard, write_options, repeatable=goal.repeatable)

        def once(place: Place, timeout_s: float) -> None:
            nonlocal pending
            del request.deliveries[0].recipients[:]
            request.deliveries[0].recipients.extend(everybody[index] for index in pending)
            reply = self._once(goal, place, _DELIVER, request, timeout_s)
            answers = list(zip(pending, reply.results[0].recipients, strict=True))
            _learn(found, dict(answers))
            failed = {index: answer for index, answer in answers if answer.reason in RETRIED}
            pending = list(failed)
            # A fate that is not known decides what may be said in the end.
            for answer in sorted(failed.values(), key=_is_settled):
                raise _error_of(answer)

        try:
            self._run(Attempts(goal, self._nodes.extra), end_s, once)
        except errors.MailraftError as error:
            _learn(found, dict.fromkeys(pending, _result_of(error)))
        return found

    def _run(
        self, attempts: Attempts, end_s: float, once: Callable[[Place, float], Result]
    ) -> Result:
        nodes = self._nodes
        while True:
            place = nodes.choose(attempts)
            if place is None:
                raise attempts.nowhere()
            if attempts.count and time.monotonic() >= end_s:
                raise attempts.last(errors.DeadlineExceededError())
            try:
                result = once(place, attempts.timeout_s(max(0.0, end_s - time.monotonic())))
            except errors.MailraftError as error:
                left_s = end_s - time.monotonic()
                attempts.failed(
                    place.address, error, left_s, lambda: nodes.choose(attempts) is not None
                )
                nodes.learn(attempts, place, error)
                if nodes.choose(attempts) is None:
                    time.sleep(max(0.0, min(attempts.next_round(error), left_s)))
                if time.monotonic() >= end_s:
                    raise attempts.last(error) from None
                continue
            nodes.worked(attempts, place)
            return result


def _run_without_waiting(work: Coroutine[Any, Any, Result]) -> Result:
    try:
        work.send(None)
    except StopIteration as done:
        return cast("Result", done.value)
    finally:
        work.close()
    raise AssertionError("it waited")


def _learn(
    found: dict[int, delivery_pb2.RecipientResult],
    answers: Mapping[int, delivery_pb2.RecipientResult],
) -> None:
    """Take later answers; that nothing was done at a later try says nothing of an earlier one."""
    for index, answer in answers.items():
        before = found.get(index)
        if before is None or _is_settled(before) or answer.reason not in RETRIED:
            found[index] = answer


def _is_settled(answer: delivery_pb2.RecipientResult) -> bool:
    return answer.reason != error_pb2.ERROR_REASON_COMMIT_UNKNOWN


def _error_of(answer: delivery_pb2.RecipientResult) -> errors.MailraftError:
    return errors.by_reason(answer.reason, answer.message, code=answer.code)


def _result_of(error: errors.MailraftError) -> delivery_pb2.RecipientResult:
    return delivery_pb2.RecipientResult(
        code=error.code.value[0],
        reason=error.reason,
        message=error.message,
        retry_after_ms=error.retry_after_ms or 0,
    )
