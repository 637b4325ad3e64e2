"""Who may speak as a node: for both of the streams that nodes open to each other."""

from __future__ import annotations

from typing import Any, Protocol

import grpc

from mailraft.node.interfaces import ClusterView
from mailraft.wire import feature_levels


class Introduction(Protocol):
    """What a stream begins with: Hello, or SnapshotOffer."""

    @property
    def cluster_id(self) -> str: ...

    @property
    def from_node(self) -> int: ...

    @property
    def to_node(self) -> int: ...


def misdirected(view: ClusterView, caller: Introduction) -> str:
    """Why a stream is not for this node; empty: it is."""
    known = {peer.node for peer in view.peers()} - {view.node}
    if caller.cluster_id != view.cluster_id:
        return "this is another cluster"
    if caller.to_node != view.node or caller.from_node not in known:
        return f"this is node {view.node}; {caller.from_node} calls {caller.to_node}"
    return ""


def too_old(view: ClusterView, node: int, level: int) -> str:
    """Why a node of this feature level gets no stream, and opens none."""
    return (
        f"the cluster is at feature level {view.feature_level}, node {node} understands {level}: "
        f"it needs {feature_levels.version_of(view.feature_level)} or newer"
    )


async def refuse_impostor(
    context: grpc.aio.ServicerContext[Any, Any], caller: Introduction
) -> None:
    """Abort unless the certificate is that of the node that calls: its name is node-<number>.

    The cluster's authority also signs clients and routers. Without TLS (--insecure, loopback only)
    nobody has a name, and everybody is believed.
    """
    names = context.auth_context().get("x509_common_name")
    if names is not None and list(names) != [f"node-{caller.from_node}".encode()]:
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED, f"not the certificate of node {caller.from_node}"
        )


async def refuse_stranger(context: grpc.aio.ServicerContext[Any, Any], view: ClusterView) -> None:
    """Abort unless the certificate is that of any node of this cluster (see refuse_impostor)."""
    names = context.auth_context().get("x509_common_name")
    members = {f"node-{peer.node}".encode() for peer in view.peers()}
    if names is not None and not members & set(names):
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not the certificate of a node")
