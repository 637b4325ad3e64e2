"""The layers that a delivery passes, each alone: made ready once, then run again and again.

What lies below a layer is cut off by something that answers at once. So the sum of all layers is
about what a delivery costs the machine, and a layer that gets slower says so by its name.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

from bench.micro import seeing
from bench.micro.inside import Apply, Consensus, Engine, Handler, Prepare, new_store, proposals
from bench.micro.outside import Client, RouterHop, rpc
from bench.micro.work import BATCH


class Layer(Protocol):
    """One layer. `run` does a part of its work and answers how many deliveries that were."""

    async def run(self) -> int: ...


@asynccontextmanager
async def layers() -> AsyncIterator[dict[str, Layer]]:
    """All of them, by name, in the order in which a delivery passes them."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mailraft-micro-")))
        batches = await proposals()
        made: dict[str, Layer] = {"client": Client(), "router hop": RouterHop()}
        made["rpc, 1 a call"] = await stack.enter_async_context(rpc(1))
        made[f"rpc, {BATCH} a call"] = await stack.enter_async_context(rpc(BATCH))
        made["prepare"], made["handler"] = Prepare(), Handler()
        consensus = Consensus(folder, batches)
        stack.callback(consensus.close)
        made["consensus"] = consensus
        for name, kind in (("apply", Apply), ("engine", Engine)):
            store = new_store(folder / name)
            stack.callback(store.close)
            made[name] = kind(store, batches)
        made.update(seeing.layers())
        yield made
