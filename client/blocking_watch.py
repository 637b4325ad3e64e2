"""Watch for Client: one stream a node, each read by a thread (a greenlet under gevent)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import grpc

from mailraft.client.blocking_nodes import BlockingNodes
from mailraft.router.attempts import Attempts, Goal, Target
from mailraft.router.methods import METHODS
from mailraft.v1 import change_pb2
from mailraft.wire import errors

# Past it the threads wait, and the servers join what follows.
EVENTS_WAITING_MAX = 1_000
# How often a thread that waits looks whether anybody still reads.
LOOK_S = 0.2

_WATCH = METHODS["/mailraft.v1.MessageService/Watch"]
_Event = change_pb2.WatchResponse | errors.MailraftError


def watch(
    nodes: BlockingNodes, requests: Sequence[change_pb2.WatchRequest]
) -> Generator[change_pb2.WatchResponse, None, None]:
    """Until one of the streams breaks: that ends them all, as its error."""
    streams = _Streams(nodes)
    try:
        for address, asked in _by_address(nodes, requests).items():
            streams.open(address, asked)
        yield from streams.events()
    finally:
        streams.close()


def _by_address(
    nodes: BlockingNodes, requests: Sequence[change_pb2.WatchRequest]
) -> dict[str, list[change_pb2.WatchRequest]]:
    found: dict[str, list[change_pb2.WatchRequest]] = {}
    for request in requests:
        # Any replica tells; the leader knows first.
        goal = Goal(nodes.shard_of(request.account_id), Target.LEADER)
        place = nodes.choose(Attempts(goal, nodes.extra))
        if place is None:
            raise errors.NoLeaderError("the cluster map names no replica of an account")
        found.setdefault(place.address, []).append(request)
    return found


class _Streams:
    def __init__(self, nodes: BlockingNodes) -> None:
        self._nodes = nodes
        self._events: queue.Queue[_Event] = queue.Queue(EVENTS_WAITING_MAX)
        self._closed = threading.Event()
        self._calls: list[Any] = []

    def open(self, address: str, requests: Sequence[change_pb2.WatchRequest]) -> None:
        call = self._nodes.call(address, _WATCH, self._asked(requests), None)
        self._calls.append(call)
        threading.Thread(target=self._listen, args=(address, call), daemon=True).start()

    def events(self) -> Generator[change_pb2.WatchResponse, None, None]:
        while True:
            event = self._events.get()
            if isinstance(event, errors.MailraftError):
                raise event
            yield event

    def close(self) -> None:
        self._closed.set()
        for call in self._calls:
            call.cancel()

    def _asked(
        self, requests: Sequence[change_pb2.WatchRequest]
    ) -> Iterator[change_pb2.WatchRequest]:
        yield from requests
        self._closed.wait()

    def _listen(self, address: str, call: Any) -> None:
        try:
            for response in call:
                self._put(response)
            error: errors.MailraftError = errors.ShuttingDownError(f"{address} ended the stream")
        except grpc.RpcError as failed:
            error = self._nodes.failure(address, failed)
        self._put(error)

    def _put(self, event: _Event) -> None:
        while not self._closed.is_set():
            try:
                self._events.put(event, timeout=LOOK_S)
            except queue.Full:
                continue
            return
