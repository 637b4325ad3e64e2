"""A replica steps aside: it is stopped, leads and votes no more, and load() refuses it from now on.

For whatever is wrong with one replica alone. Damaged files concern all of a node: rebuild.py.
"""

from __future__ import annotations

import logging

from mailraft.node.consensus.host import Host
from mailraft.node.engine.store import Store
from mailraft.node.runtime import Runtime
from mailraft.node.shard import Leadership, Replica

log = logging.getLogger(__name__)


async def set_aside(store: Store, host: Host, runtime: Runtime, own: Replica, why: str) -> None:
    """On disk when this returns. Again: nothing. Raises DiskError."""

    def stop() -> None:
        if store.is_set_aside(own.group) or (own.group, own.replica) not in store.groups():
            return  # done already, or moved away meanwhile
        store.set_aside(own.group)
        host.remove_group(own.group)
        own.lead(Leadership())
        own.stop("this replica was set aside; see the node's log")
        log.critical(
            "the replica of shard %d steps aside, it neither votes nor serves: %s. It is fetched "
            "again from its peers once a majority of them is well",
            own.group,
            why,
        )

    await runtime.between_turns(stop)
    await runtime.flushed()
