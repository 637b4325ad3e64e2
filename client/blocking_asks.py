"""One try of a unary call of Client, which may be left before its time is over: a silent leader for
the one that leads in its place, a slow replica for another. The rules are those of
mailraft.router.seek and mailraft.router.hedge.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from mailraft.client.blocking_nodes import BlockingNodes
from mailraft.router.goals import level_of
from mailraft.router.methods import METHODS, Method
from mailraft.router.seek import (
    ASK_TIMEOUT_S,
    REST_FIRST_S,
    SILENT_S,
    replaced,
    rivals,
    silence,
)
from mailraft.router.table import Place
from mailraft.v1 import cluster_pb2
from mailraft.wire import errors

_GET_MAP = METHODS["/mailraft.v1.ClusterService/GetClusterMap"]


class BlockingAsks:
    """Usable from several threads. All raise MailraftError."""

    def __init__(self, nodes: BlockingNodes) -> None:
        self._nodes = nodes
        self._lock = threading.Lock()
        self._asked_s: dict[tuple[int, str], float] = {}

    def leader(
        self, shard: int, place: Place, method: Method, request: Any, timeout_s: float
    ) -> Any:
        """The reply of who is held for the leader of a shard; NoAnswerError once it is silent and
        another node leads.
        """
        call = self._nodes.begin(place.address, method, request, timeout_s)
        patience_s = SILENT_S
        try:
            while True:
                try:
                    return call.result(timeout=patience_s)
                except grpc.FutureTimeoutError:
                    patience_s = REST_FIRST_S
                if self._is_replaced(shard, place.address):
                    self._nodes.suspect(place.address)
                    raise silence(place.address)
        except grpc.RpcError as error:
            raise self._nodes.failure(place.address, error) from None
        finally:
            call.cancel()

    def anywhere(
        self,
        place: Place,
        method: Method,
        request: Any,
        timeout_s: float,
        spare: Callable[[Place], Place | None],
    ) -> Any:
        """The first reply of `place` or, after a while, of a spare one as well."""
        nodes, hedger, kind = self._nodes, self._nodes.hedger, (method.name, level_of(request))
        after_s, began_s = hedger.after_s(kind), time.monotonic()
        if after_s is None:
            with nodes.loads.measured(place.address, sampled=True):
                reply = nodes.unary(place.address, method, request, timeout_s)
        else:
            race = _Race(nodes, method, request, timeout_s)
            reply = race.run(after_s, place, spare)
        hedger.took(kind, time.monotonic() - began_s)
        return reply

    def _is_replaced(self, shard: int, silent: str) -> bool:
        """Asks who leads, once for all threads that wait for the same."""
        table, now_s = self._nodes.table, time.monotonic()
        with self._lock:
            mine = now_s >= self._asked_s.get((shard, silent), 0.0)
            if mine:
                self._asked_s[shard, silent] = now_s + ASK_TIMEOUT_S
        if mine:
            request = cluster_pb2.GetClusterMapRequest(known_epoch=table.epoch)
            asked = [
                self._nodes.begin(address, _GET_MAP, request, ASK_TIMEOUT_S)
                for address in rivals(table, shard, silent)
            ]
            for each in asked:
                try:
                    self._nodes.install(each.result().map)
                except (grpc.RpcError, grpc.FutureCancelledError):
                    continue  # another may tell
        return replaced(table, shard, silent)


@dataclass(slots=True)
class _Asked:
    address: str
    call: Any
    began_s: float
    answered: bool = False
    error: errors.MailraftError | None = None


class _Race:
    """One read, of one replica and maybe of a second."""

    def __init__(
        self, nodes: BlockingNodes, method: Method, request: Any, timeout_s: float
    ) -> None:
        self._nodes, self._method, self._request = nodes, method, request
        self._timeout_s = timeout_s
        self._one_is_done = threading.Event()
        self._asked: list[_Asked] = []

    def run(self, after_s: float, place: Place, spare: Callable[[Place], Place | None]) -> Any:
        hedger = self._nodes.hedger
        try:
            self._ask(place)
            if not self._one_is_done.wait(min(after_s, self._timeout_s)):
                other = spare(place)
                if other is not None and hedger.budget.spend():
                    self._ask(other)
            return self._first_reply()
        finally:
            for each in self._asked:
                each.call.cancel()
                self._nodes.loads.ended(
                    each.address,
                    each.began_s,
                    sampled=True,
                    error=each.error,
                    answered=each.answered,
                )

    def _ask(self, place: Place) -> None:
        address = place.address
        call = self._nodes.begin(address, self._method, self._request, self._timeout_s)
        self._asked.append(_Asked(address, call, self._nodes.loads.began(address)))
        call.add_done_callback(lambda _: self._one_is_done.set())

    def _first_reply(self) -> Any:
        """Raises what the first one says once all have failed."""
        open_ = list(self._asked)
        while open_:
            self._one_is_done.wait(self._timeout_s)  # which is the time of the calls too
            self._one_is_done.clear()
            for each in [each for each in open_ if each.call.done()]:
                open_.remove(each)
                try:
                    reply = each.call.result()
                except grpc.RpcError as error:
                    each.error = self._nodes.failure(each.address, error)
                else:
                    each.answered = True
                    self._nodes.hedger.won += each is not self._asked[0]
                    return reply
        assert self._asked[0].error is not None
        raise self._asked[0].error
