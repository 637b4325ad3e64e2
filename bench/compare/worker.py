"""The process that holds one peer's client: python -m bench.compare.worker PEER.

It reads a request a line and answers with one: {"open": ADDRESS, "large_mailbox": N}, {"run": WORK,
"seconds": S}, {"units": N, "of": WORK}. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import traceback
from importlib import import_module
from typing import Any, Self

import uvloop
from bench.compare import work
from bench.compare.interface import Address, Client

# Where each peer's client is; a worker imports only its own.
CLIENTS = {
    "mailraft": ("mailraft_peer", "MailraftClient"),
    "mailraft-tls": ("mailraft_peer", "MailraftClient"),
    "etcd": ("etcd", "EtcdClient"),
    "postgres": ("postgres", "PostgresClient"),
    "nats": ("nats_jetstream", "NatsClient"),
    "dovecot": ("dovecot", "DovecotClient"),
}
LINE_BYTES_MAX = 1024 * 1024
STOP_DEADLINE_S = 10.0


class Worker:
    """Such a process, seen from the one that measures."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._process: asyncio.subprocess.Process | None = None
        self.works: list[str] = []

    async def start(self, address: Address, large_mailbox: int) -> Self:
        """Returns when the client is connected and has what reads need."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.compare.worker", self._peer),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=LINE_BYTES_MAX,
        )
        self.works = (await self._ask({"open": address, "large_mailbox": large_mailbox}))["works"]
        return self

    async def run(self, name: str, seconds: float) -> work.Done:
        return work.Done(**await self._ask({"run": name, "seconds": seconds}))

    async def run_units(self, name: str, units: int) -> int:
        """How many were done."""
        return int((await self._ask({"units": units, "of": name}))["units"])

    async def stop(self) -> None:
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _ask(self, request: dict[str, Any]) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client of {self._peer} has ended: see above")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the client of {self._peer}: {answer['error']}")
        return answer


async def serve(client: Client) -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            answer = await _answer(client, json.loads(line))
        except Exception as error:  # noqa: BLE001  # told to the other process, which goes on
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    await client.close()


async def _answer(client: Client, request: dict[str, Any]) -> dict[str, Any]:
    if "open" in request:
        await client.open(request["open"], request["large_mailbox"])
        gc.freeze()  # what is there now stays: the collector need not look at it again
        return {"works": list(client.works)}
    if "run" in request:
        chosen = client.works[request["run"]]
        return (await work.run(chosen, request["seconds"], client.errors)).as_json()
    chosen = client.works[request["of"]]
    return {"units": await work.run_units(chosen, request["units"], client.errors)}


def main() -> None:
    module, name = CLIENTS[sys.argv[1]]
    client: Client = getattr(import_module(f"bench.compare.{module}"), name)()
    uvloop.run(serve(client))


if __name__ == "__main__":
    main()
