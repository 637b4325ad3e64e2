"""What `mailraft check repair` asks the nodes: to read all they store until it is whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import grpc

from mailraft.internal.v1 import audit_service_pb2, audit_service_pb2_grpc
from mailraft.node.interfaces import META_GROUP
from mailraft.v1 import cluster_pb2
from mailraft.wire.credentials import AnyCredentials, open_channel

ASK_S_MAX = 5.0
POLL_S = 0.5

_Told = audit_service_pb2.ScrubResponse


@dataclass(slots=True)
class NodeScrubbed:
    """One node. told: None: it does not answer."""

    node: str
    told: _Told | None = None
    found: int = 0  # errors that came up while it was watched
    done: bool = False  # what was asked for is done: it has read everything

    @property
    def state(self) -> str:
        """In words."""
        told = self.told
        if told is None:
            return "does not answer"
        if told.damage:
            return f"damaged, and nobody else has it: {told.damage}"
        if told.waiting:
            return f"has set aside {_named(told.waiting)}"
        if told.repairing:
            return f"fetches {_named(told.fetching)} again: {told.repairing}"
        return "reads" if told.running else "whole"

    @property
    def damaged(self) -> bool:
        """Whether something is not repaired (yet)."""
        told = self.told
        return told is not None and bool(told.damage or told.waiting or told.repairing)


class Scrubs:
    """Keeps a channel to every node of a cluster map."""

    def __init__(self, cluster_map: cluster_pb2.ClusterMap, credentials: AnyCredentials) -> None:
        there = [node for node in cluster_map.nodes if node.state != cluster_pb2.NODE_STATE_REMOVED]
        self._names = {node.id: node.name for node in there}
        self._channels = {node.id: open_channel(node.address, credentials) for node in there}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close(None) for channel in self._channels.values()))

    async def look(self) -> list[NodeScrubbed]:
        """How every node stands, and nothing else."""
        told = await asyncio.gather(*(self._ask(node, begin=False) for node in self._channels))
        return [
            NodeScrubbed(self._names[node], each)
            for node, each in zip(self._channels, told, strict=True)
        ]

    async def run(self, *, timeout_s: float) -> list[NodeScrubbed]:
        """Have all nodes read everything, and wait until all that was found is repaired, or time
        is up. A node that gives its store up is gone meanwhile, and begins again.
        """
        until_s = time.monotonic() + timeout_s
        return list(await asyncio.gather(*(self._run(node, until_s) for node in self._channels)))

    async def _run(self, node: int, until_s: float) -> NodeScrubbed:
        found = NodeScrubbed(self._names[node])
        before = await self._ask(node, begin=True)
        while True:
            last, found.told = found.told or before, await self._ask(node, begin=False)
            told = found.told
            if told is not None:
                found.found += max(0, told.errors - (last.errors if last is not None else 0))
                if before is None:  # it was gone: what it has now, it has not read yet
                    before = await self._ask(node, begin=True)
                elif told.passes > before.passes and not found.damaged:
                    found.done = True
            else:
                before = None
            if found.done or time.monotonic() > until_s:
                return found
            await asyncio.sleep(POLL_S)

    async def _ask(self, node: int, *, begin: bool) -> _Told | None:
        stub = audit_service_pb2_grpc.AuditServiceStub(self._channels[node])
        request = audit_service_pb2.ScrubRequest(begin=begin)
        try:
            told: _Told = await stub.Scrub(request, timeout=ASK_S_MAX)
        except grpc.aio.AioRpcError:
            return None
        return told


def _named(groups: Iterable[int]) -> str:
    return " ".join("meta" if each == META_GROUP else f"s{each}" for each in groups) or "replicas"
