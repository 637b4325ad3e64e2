"""One call to every node of a cluster at once, and who does not answer it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from mailraft.v1 import cluster_pb2
from mailraft.wire import errors
from mailraft.wire.credentials import AnyCredentials, open_channel

Answer = TypeVar("Answer")
# An answer that does not come: the node may be down.
SILENCE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class Asked(Generic[Answer]):
    """By the names of nodes, in the order of the map."""

    answers: dict[str, Answer]
    silent: list[str]


async def ask_nodes(
    cluster_map: cluster_pb2.ClusterMap,
    credentials: AnyCredentials,
    call: Callable[[grpc.aio.Channel], Awaitable[Answer]],
) -> Asked[Answer]:
    """Raises what a node refuses the call with."""

    async def one(node: cluster_pb2.Node) -> Any:
        async with open_channel(node.address, credentials) as channel:
            try:
                return await call(channel)
            except grpc.aio.AioRpcError as error:
                if error.code() in SILENCE:
                    return None
                raise errors.from_rpc_error(error) from None

    there = [each for each in cluster_map.nodes if each.state != cluster_pb2.NODE_STATE_REMOVED]
    told = await asyncio.gather(*map(one, there))
    found: Asked[Answer] = Asked({}, [])
    for node, answer in zip(there, told, strict=True):
        if answer is None:
            found.silent.append(node.name)
        else:
            found.answers[node.name] = answer
    return found
