"""A load of REQUESTS requests on a cluster of its own, and a report of it: make load.

Starts three nodes and a router as they run in production (TLS, fsync, QUORUM), and a locust master
with workers, all on this machine. At the end every account is counted: what was acknowledged has
to be there, once. Ends with 1 if a request failed after all its retries, if the counts differ, or
if the time was over first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.load_report import Run, markdown, read_requests

from mailraft.client import Consistency
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.cluster.ports import choose

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
# As many shards as nodes: with more, each log entry has less of the load in it.
NODES, SHARDS = 3, 3
DELIVERING = ("deliver", "watch")  # requests that add a mail each
WORKERS_DEADLINE_S = 60
COUNT_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0
# From the first worker to the last report, but for the load itself.
END_DEADLINE_S = 240.0


@dataclass(frozen=True, slots=True)
class Asked:
    requests: int
    users: int
    workers: int
    seconds: float


def _locust(arguments: list[str], env: dict[str, str], log: IO[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", *arguments]
    return subprocess.Popen(command, env=env, stdout=log, stderr=log, text=True)


def load(cluster: LocalCluster, asked: Asked, folder: Path) -> None:
    """Run locust until it has done what is asked, or the time is over."""
    env = {
        **os.environ,
        "MAILRAFT_SERVER": cluster.router_address,
        "MAILRAFT_CERTS": str(cluster.certs_folder or ""),
        "MAILRAFT_REQUESTS": str(asked.requests),
        "MAILRAFT_SECONDS": str(asked.seconds),
        "MAILRAFT_OUTCOME": str(folder / "outcome.json"),
    }
    [port] = choose(1)
    join = ["--master-port", str(port), "--master-host", "127.0.0.1"]
    workers: list[subprocess.Popen[str]] = []
    with (folder / "locust.log").open("w") as log:
        users = ["-u", str(asked.users), "-r", str(asked.users)]
        wait = ["--expect-workers", str(asked.workers)]
        wait += ["--expect-workers-max-wait", str(WORKERS_DEADLINE_S)]
        bind = ["--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)]
        # Requests that run when there are enough are waited for, and counted.
        wait += ["--stop-timeout", f"{STOP_DEADLINE_S:.0f}"]
        results = ["--json-file", str(folder / "requests"), "--only-summary"]
        master = _locust(["--master", *bind, *wait, *users, *results], env, log)
        try:
            threads = {**env, "LOCUST_SKIP_MONKEY_PATCH": "1"}
            workers += (_locust(["--worker", *join], threads, log) for _ in range(asked.workers))
            master.wait(asked.seconds + END_DEADLINE_S)
            for worker in workers:  # locust's master leaves those alone that stopped their users
                worker.terminate()
                worker.wait(STOP_DEADLINE_S)
        finally:
            for process in (*workers, master):
                process.kill()
                process.wait()


async def count(cluster: LocalCluster) -> int:
    """How many messages all accounts have, as their leaders know."""
    found = 0
    async with cluster.client(deadline_s=COUNT_DEADLINE_S) as mail:
        async for account in mail.list_accounts(consistency=Consistency.LINEARIZABLE):
            found += account.usage.messages
    return found


async def run(asked: Asked, folder: Path) -> Run:
    """The whole of it."""
    async with LocalCluster(folder / "cluster", LocalOptions(NODES, SHARDS)) as cluster:
        await cluster.wait_ready()
        began_s = time.monotonic()
        await asyncio.to_thread(load, cluster, asked, folder)
        took_s = time.monotonic() - began_s
        requests = read_requests((folder / "requests.json").read_text("utf-8"))
        acknowledged = sum(each.done for each in requests if each.name in DELIVERING)
        outcome = json.loads((folder / "outcome.json").read_text("utf-8"))
        return Run(
            requests,
            outcome["retries"],
            outcome["failed"],
            took_s,
            asked.users,
            acknowledged,
            await count(cluster),
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=128, help="how many are in flight")
    parser.add_argument("--workers", type=int, default=2, help="processes of locust")
    parser.add_argument("--seconds", type=float, default=6 * 3600.0, help="at most")
    parser.add_argument("--report", type=Path, default=Path("build/load.md"))
    arguments = parser.parse_args()
    asked = Asked(arguments.requests, arguments.users, arguments.workers, arguments.seconds)
    with tempfile.TemporaryDirectory(prefix="mailraft-load-") as name:
        folder = Path(name)
        try:
            done = asyncio.run(run(asked, folder))
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            print((folder / "locust.log").read_text("utf-8")[-4_000:], file=sys.stderr)
            raise
    text = markdown(done)
    arguments.report.parent.mkdir(exist_ok=True)
    arguments.report.write_text(text, "utf-8")
    print(text)
    return 0 if done.good and done.total.count >= arguments.requests else 1


if __name__ == "__main__":
    sys.exit(main())
