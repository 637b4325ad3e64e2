"""How Client reaches the cluster: blocking stubs, one call at a time, for threads and for gevent.

The router's Dispatcher needs an event loop, which a thread patched by gevent cannot run beside its
own. So this follows its rules in less: no coalescing, and reads go to the leader too.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, TypeVar, cast

import grpc

from mailraft.client import blocking_watch
from mailraft.client.blocking_nodes import BlockingNodes
from mailraft.client.blocking_tries import BlockingTries, transient
from mailraft.client.content import Upload
from mailraft.client.settings import Settings
from mailraft.router import listing
from mailraft.router.methods import (
    METHODS,
    Method,
    Route,
    account_of,
    method_of,
    waits_for_replicas,
)
from mailraft.v1 import blob_pb2, change_pb2, common_pb2, delivery_pb2
from mailraft.wire import errors

_DELIVER = METHODS["/mailraft.v1.MessageService/DeliverMessages"]
_UPLOAD = METHODS["/mailraft.v1.BlobService/UploadBlob"]

Result = TypeVar("Result")


class BlockingTransport:
    """Usable from several threads or greenlets."""

    def __init__(self, settings: Settings) -> None:
        self._nodes = BlockingNodes(settings)

    def unary(self, request: Any, deadline_s: float) -> Any:
        """The reply to a request, after as many tries as it takes and the deadline allows."""
        method, end_s = method_of(request), time.monotonic() + deadline_s
        table = self._nodes.table
        if method.route is Route.EVERY_SHARD and table is not None:
            return _run_without_waiting(listing.list_accounts(self._ask, table, request, end_s))
        return self._unary(method, request, self._nodes.shard_of(account_of(request)), end_s)

    def stream(self, request: Any, deadline_s: float) -> Generator[Any, None, None]:
        """The parts of a reply. A failed try is followed by another only before the first part."""
        method = method_of(request)

        def once(address: str, _: float) -> tuple[str, Any, Any]:
            parts = self._nodes.call(address, method, request, deadline_s)
            try:
                return address, parts, next(parts, None)
            except grpc.RpcError as error:
                raise self._nodes.failure(address, error) from None

        end_s = time.monotonic() + deadline_s
        shard = self._nodes.shard_of(account_of(request))
        address, parts, first = self._run(method, request, shard, end_s, once)
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

        def once(address: str, _: float) -> blob_pb2.UploadBlobResponse:
            stream = itertools.chain((header,), upload.chunks())
            left_s = max(0.001, end_s - time.monotonic())
            try:
                reply = self._nodes.call(address, _UPLOAD, stream, left_s)
            except grpc.RpcError as error:
                raise self._nodes.failure(address, error) from None
            assert isinstance(reply, blob_pb2.UploadBlobResponse)
            return reply

        end_s = time.monotonic() + deadline_s
        shard = self._nodes.shard_of(header.header.account_id)
        return self._run(_UPLOAD, header.header, shard, end_s, once)

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
        by_shard: dict[int | None, list[int]] = {}
        for index, recipient in enumerate(delivery.recipients):
            shard = self._nodes.shard_of(recipient.account_id)
            by_shard.setdefault(shard, []).append(index)
        found: dict[int, delivery_pb2.RecipientResult] = {}
        for shard, indexes in by_shard.items():
            found.update(self._deliver(delivery, indexes, shard, write_options, end_s))
        results = [found[index] for index in range(len(delivery.recipients))]
        return delivery_pb2.DeliveryResult(recipients=results)

    def _unary(self, method: Method, request: Any, shard: int | None, end_s: float) -> Any:
        def once(address: str, timeout_s: float) -> Any:
            return self._nodes.unary(address, method, request, timeout_s)

        return self._run(method, request, shard, end_s, once)

    async def _ask(self, method: Method, request: Any, end_s: float) -> Any:
        """What listing asks of one shard. Never waits, so that no event loop is needed."""
        return self._unary(method, request, request.shards[0], end_s)

    def close(self) -> None:
        """Ends all calls and connections."""
        self._nodes.close()

    def _deliver(
        self,
        delivery: delivery_pb2.Delivery,
        indexes: list[int],
        shard: int | None,
        write_options: common_pb2.WriteOptions,
        end_s: float,
    ) -> dict[int, delivery_pb2.RecipientResult]:
        everybody = list(delivery.recipients)
        found: dict[int, delivery_pb2.RecipientResult] = {}
        pending = indexes
        request = delivery_pb2.DeliverMessagesRequest(write_options=write_options)
        request.deliveries.append(delivery)

        def once(address: str, timeout_s: float) -> None:
            nonlocal pending
            del request.deliveries[0].recipients[:]
            request.deliveries[0].recipients.extend(everybody[index] for index in pending)
            reply = self._nodes.unary(address, _DELIVER, request, timeout_s)
            answers = list(zip(pending, reply.results[0].recipients, strict=True))
            found.update(answers)
            failed = {index: _error_of(answer) for index, answer in answers if answer.code}
            pending = [index for index, error in failed.items() if transient(error)]
            for index in pending:
                raise failed[index]

        try:
            self._run(_DELIVER, request, shard, end_s, once)
        except errors.MailraftError as error:
            found.update((index, _result_of(error)) for index in pending)
        return found

    def _run(
        self,
        method: Method,
        request: Any,
        shard: int | None,
        end_s: float,
        once: Callable[[str, float], Result],
    ) -> Result:
        options = getattr(request, "write_options", None)
        whole_time = method.mutation and waits_for_replicas(options, self._nodes.policy)
        tries = BlockingTries(method, end_s, whole_time=whole_time)
        replica_id = request.read_options.require_replica if method.route is Route.READ else 0
        while True:
            addresses = self._nodes.addresses(shard, replica_id)
            address = next((each for each in addresses if each not in tries.tried), "")
            if not address:
                tries.next_round()
                continue
            try:
                result = once(address, tries.timeout_s())
            except errors.MailraftError as error:
                self._nodes.learn(shard, address, error)
                tries.failed(address, error)
                continue
            self._nodes.worked(shard, address, leads=method.mutation)
            return result


def _run_without_waiting(work: Coroutine[Any, Any, Result]) -> Result:
    try:
        work.send(None)
    except StopIteration as done:
        return cast("Result", done.value)
    finally:
        work.close()
    raise AssertionError("it waited")


def _error_of(answer: delivery_pb2.RecipientResult) -> errors.MailraftError:
    return errors.by_reason(answer.reason, answer.message, code=answer.code)


def _result_of(error: errors.MailraftError) -> delivery_pb2.RecipientResult:
    return delivery_pb2.RecipientResult(
        code=error.code.value[0],
        reason=error.reason,
        message=error.message,
        retry_after_ms=error.retry_after_ms or 0,
    )
