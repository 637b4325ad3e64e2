"""A client's own figures for Prometheus: how well its calls coalesce. Needs prometheus-client.

from mailraft.client import AsyncClient, metrics

metrics.register(mail)
"""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry

from mailraft.client.async_client import AsyncClient
from mailraft.router.collector import DispatchCollector


def register(client: AsyncClient, registry: CollectorRegistry = REGISTRY) -> None:
    """Tell what this client does, from now on: one client a registry.

    Raises ValueError when another one is registered there.
    """
    registry.register(DispatchCollector(client._transport.dispatcher, "mailraft_client"))
