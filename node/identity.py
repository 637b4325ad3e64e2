"""Whose certificate a peer shows. The cluster's authority also signs clients and routers."""

from __future__ import annotations

from typing import Any

import grpc


def speaks_for(context: grpc.aio.ServicerContext[Any, Any], node: int) -> bool:
    """Whether the caller's certificate is that of this node: its common name is node-<number>.

    Without TLS (--insecure, loopback only) nobody has a name, and everybody is believed.
    """
    names = context.auth_context().get("x509_common_name")
    return names is None or list(names) == [f"node-{node}".encode()]
