"""A cluster on this machine: node processes and a router, and everything of theirs in one folder.

FOLDER/map.json            the cluster map: as of the last start, or of the last node that was added
FOLDER/certs/              the authority and the certificates, unless plain text was asked for
FOLDER/n1/, n2/, ...       node.toml and the node's data
FOLDER/router/router.toml
FOLDER/logs/*.log          one a process
FOLDER/run.json            who runs where, metrics too; only while it runs
FOLDER/lock                held while it runs: one cluster a folder

Each process is the same `mailraft node` or `mailraft router` that runs in production.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mailraft.client import AsyncClient
from mailraft.cluster import certs, mapfile, ports, runfile, settings
from mailraft.cluster.addresses import split_address
from mailraft.cluster.child import Child
from mailraft.cluster.errors import ClusterError, FolderInUseError, MapFileError, NotReadyError
from mailraft.cluster.levels import LogLevel
from mailraft.cluster.maps import FILE_NAME
from mailraft.cluster.observer import Observer
from mailraft.cluster.operator import Operator
from mailraft.router.ring import WEIGHT_SHARE_MILLI
from mailraft.v1 import cluster_pb2
from mailraft.wire.credentials import AnyCredentials, Credentials, Insecure

DEFAULT_NODES = 3
DEFAULT_SHARDS = 8
NODES_MAX = 32
READY_DEADLINE_S = 60.0
# Between a try whether the cluster is ready and the next.
READY_POLL_S = 0.05
# Calls that run when a local cluster is stopped get this long.
STOP_GRACE_S = 1.0
# On one's own machine, where a disk with little room is no reason to take nothing.
DISK_RESERVE_BYTES = 256 * 1024 * 1024
# A process gets this long to end by itself, then SIGKILL.
STOP_DEADLINE_S = 10.0
# Children of a parent that was killed end by themselves within their grace.
ORPHANS_DEADLINE_S = 15.0
# The meta group decides on one more node within this.
GROW_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """nodes, shards: of a new folder; None: as it is there, else the default.

    port: of the router, the nodes get those after it; 0: any. A port that is taken is replaced by
    a free one. insecure: plain text.
    """

    nodes: int | None = None
    shards: int | None = None
    port: int = 0
    insecure: bool = False
    log_level: LogLevel = LogLevel.INFO


class LocalCluster:
    """Starts, stops, kills and restarts the processes of one folder.

        async with LocalCluster(Path(".mailraft")) as cluster:
            await cluster.wait_ready()

    Leaving the block stops every process; so does the end of this process, however it comes.
    """

    def __init__(self, folder: Path, options: LocalOptions = LocalOptions()) -> None:  # frozen
        self.folder = folder.absolute()
        self.options = options
        self.map = cluster_pb2.ClusterMap()
        self.router_address = ""
        self._lock: int | None = None
        self._metrics: dict[str, str] = {}  # addresses by the name of a process
        self._nodes: dict[int, Child] = {}
        self._router: Child | None = None
        self._observer: Observer | None = None

    @property
    def certs_folder(self) -> Path | None:
        """What a client passes as `certs`; None: plain text."""
        return None if self.options.insecure else self.folder / "certs"

    @property
    def logs_folder(self) -> Path:
        return self.folder / "logs"

    @property
    def nodes(self) -> list[int]:
        """The numbers of all nodes that have not left."""
        return [node.id for node in self.map.nodes if node.state != _REMOVED]

    def credentials(self, name: str = "admin") -> AnyCredentials:
        """To connect to any process of the cluster."""
        return Insecure() if self.certs_folder is None else Credentials(self.certs_folder, name)

    def client(self, *, deadline_s: float = 10.0) -> AsyncClient:
        """A client that goes straight to the leaders."""
        return AsyncClient(
            self.router_address,
            certs=self.certs_folder,
            insecure=self.certs_folder is None,
            deadline_s=deadline_s,
        )

    def address_of(self, node: int) -> str:
        return next(each.address for each in self.map.nodes if each.id == node)

    def pid_of(self, node: int) -> int:
        """Of a node's process; 0 when it does not run."""
        return self._nodes[node].pid

    def data_folder(self, node: int) -> Path:
        return self._home(node) / "data"

    # ---- the whole cluster --------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self.launch()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def launch(self) -> None:
        """Start every process; none is ready yet when this returns.

        Raises:
            FolderInUseError: a cluster runs on the folder.
            SettingsError, MapFileError, CertificateError: what is in the folder does not fit.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        await self._outlive_orphans()
        self.logs_folder.mkdir(exist_ok=True)
        router_port = self._settle_map()
        self.router_address = f"{ports.LOOPBACK}:{router_port}"
        if not self.options.insecure:
            certs.ensure(self.folder / "certs", certs.names_of(self.nodes))
        self._observer = Observer(self.map, self.router_address, self.credentials())
        for node in self.nodes:
            self._nodes[node] = self._make_node(node)
            self._nodes[node].start()
        self._router = self._make_router()
        self._router.start()
        self._write_run_file()

    async def stop(self) -> None:
        """Stop the router, then the nodes: asked first, killed if they do not end in time."""
        if self._observer is not None:
            await self._observer.close()
            self._observer = None
        if self._router is not None:
            self._router.terminate()
            await self._router.stopped(STOP_DEADLINE_S)
        for child in self._nodes.values():
            child.terminate()
        await asyncio.gather(*(child.stopped(STOP_DEADLINE_S) for child in self._nodes.values()))
        if self._lock is not None:
            runfile.remove(self.folder)
            os.close(self._lock)
            self._lock = None

    async def wait_ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        """Wait until the router serves and every shard has a leader that says so.

        Raises NotReadyError when a process ends, or at the deadline.
        """
        until = time.monotonic() + deadline_s
        while True:
            for child in self.children():
                child.check_running()
            missing = await self._watch().not_ready(self._running_nodes())
            if not missing:
                return
            if time.monotonic() > until:
                raise NotReadyError(
                    f"the cluster is not ready after {deadline_s:.0f} s: {missing}",
                    f"see the logs in {self.logs_folder}",
                )
            await asyncio.sleep(READY_POLL_S)

    def ended(self) -> list[Child]:
        """Processes that were started and run no more."""
        return [child for child in self.children() if not child.running]

    # ---- one process --------------------------------------------------------------------------

    def kill(self, node: int) -> None:
        """SIGKILL a node, as a crash would; returns when it is gone."""
        self._nodes[node].kill()

    def kill_soon(self, node: int) -> None:
        """SIGKILL a node without waiting until it is gone; `kill` it before it is started again."""
        self._nodes[node].kill_soon()

    def kill_all_nodes(self) -> None:
        """SIGKILL all nodes at once."""
        for child in self._nodes.values():
            child.kill_soon()
        for child in self._nodes.values():
            child.kill()

    def start(self, node: int) -> None:
        """Start a node again, with its data and at its address."""
        self._nodes[node].start()
        self._write_run_file()

    def start_again(self, child: Child) -> None:
        """Start a process of `ended` again."""
        child.start()
        self._write_run_file()

    async def grow(self, *, zone: str = "", host: str = "") -> int:
        """Have one more node admitted, and start it; its number. It is empty until a rebalance."""
        number = max(node.id for node in self.map.nodes) + 1
        taken = [split_address(node.address)[1] for node in self.map.nodes]
        [port] = ports.choose(1, taken=taken)
        wanted = _node(number, port)
        wanted.zone, wanted.host = zone, host
        async with Operator(self.router_address, self.credentials()) as operator:
            admitted = (await operator.add_node(wanted)).id
            async with asyncio.timeout(GROW_DEADLINE_S):
                while admitted not in self.nodes:
                    self.map = await operator.map()
                    await asyncio.sleep(READY_POLL_S)
        mapfile.save(self.folder / "map.json", self.map)
        if not self.options.insecure:
            certs.ensure(self.folder / "certs", certs.names_of([admitted]))
        await self._watch().close()
        self._observer = Observer(self.map, self.router_address, self.credentials())
        self._nodes[admitted] = self._make_node(admitted)
        self.start(admitted)
        return admitted

    def terminate(self, node: int) -> None:
        """Ask a node to stop, as an operator does."""
        self._nodes[node].terminate()

    async def stopped(self, node: int, deadline_s: float = STOP_DEADLINE_S) -> bool:
        """Wait until a node that was asked has ended; False: it did not in time, and was killed."""
        return await self._nodes[node].stopped(deadline_s)

    def forget(self, node: int) -> None:
        """Of a node that was killed for good: nobody waits for it any more."""
        del self._nodes[node]
        self._write_run_file()

    async def restart_router(self) -> None:
        """Ask the router to stop, and start it again at its address."""
        assert self._router is not None
        self._router.terminate()
        await self._router.stopped(STOP_DEADLINE_S)
        self.start_again(self._router)

    async def leader_of(self, shard: int) -> int | None:
        """The node that leads the shard, as the running nodes know; None: nobody does."""
        return (await self.leaders()).get(shard)

    async def leaders(self) -> dict[int, int]:
        """Shard to the node that leads it, of all shards that have a leader."""
        return {shard: hint.node_id for shard, hint in (await self.hints()).items()}

    async def hints(self) -> dict[int, cluster_pb2.LeaderHint]:
        """The same with replica and term."""
        watch = self._watch()
        return watch.newest(await watch.maps(self._running_nodes()))

    # ---- inside -------------------------------------------------------------------------------

    def children(self) -> list[Child]:
        """Processes that should run: not those that stopped in good order, asked or removed."""
        there = [child for child in self._nodes.values() if child.exit_status != 0]
        return [*there, *([self._router] if self._router is not None else [])]

    def _running_nodes(self) -> list[int]:
        return [node for node, child in self._nodes.items() if child.running]

    def _watch(self) -> Observer:
        assert self._observer is not None, "the cluster is not started"
        return self._observer

    def _home(self, node: int) -> Path:
        return self.folder / f"n{node}"

    def _take_lock(self) -> None:
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            running = runfile.read(self.folder)
            who = f" (process {running.pid})" if running is not None else ""
            raise FolderInUseError(
                f"a cluster runs on {self.folder} already{who}",
                "stop it with Ctrl-C where it runs, or give another folder with --dir",
            ) from None
        self._lock = lock

    async def _outlive_orphans(self) -> None:
        """Wait for the children of a parent that was killed: they hold the data and the ports."""
        left = runfile.read(self.folder)
        if left is None:
            return
        until = time.monotonic() + ORPHANS_DEADLINE_S
        for process in (left.router, *left.nodes):
            while _is_ours(process.pid, self.folder):
                if time.monotonic() > until:
                    raise ClusterError(
                        f"process {process.pid} ({process.name}) of an earlier run goes on",
                        f"end it: kill {process.pid}",
                    )
                await asyncio.sleep(READY_POLL_S)

    def _settle_map(self) -> int:
        """Load the map, or make it; give a new address to each node whose port is taken.

        Returns the router's port.
        """
        options, path = self.options, self.folder / "map.json"
        if path.exists():
            self.map = self._newest_map(path)
            self._check_shape()
        else:
            first = options.port + 1 if options.port else 0
            count = options.nodes or DEFAULT_NODES
            if not 1 <= count <= NODES_MAX:
                raise ClusterError(f"{count} nodes: from 1 to {NODES_MAX} are possible here")
            kept = list(range(first, first + count)) if first else []
            kept = ports.choose(count, wanted=kept, taken=[options.port])
            self.map = mapfile.make(
                [_node(number, port) for number, port in enumerate(kept, 1)],
                options.shards or DEFAULT_SHARDS,
            )
            mapfile.save(path, self.map)
        there = [node for node in self.map.nodes if node.state != _REMOVED]
        kept = [split_address(node.address)[1] for node in there]
        moved = [node for node, port in zip(there, kept, strict=True) if not ports.is_free(port)]
        if moved:
            fresh = ports.choose(len(moved), taken=[*kept, options.port])
            for node, port in zip(moved, fresh, strict=True):
                node.address = f"{ports.LOOPBACK}:{port}"
            mapfile.save(path, self.map)
        taken = [split_address(node.address)[1] for node in there]
        return ports.choose(1, wanted=[options.port] if options.port else [], taken=taken)[0]

    def _newest_map(self, path: Path) -> cluster_pb2.ClusterMap:
        """What the nodes saw last counts for more than the file that they began with."""
        first = mapfile.load(path)
        copies = [self.data_folder(node.id) / FILE_NAME for node in first.nodes]
        newest = max((first, *map(_copy, copies)), key=lambda each: each.epoch)
        if newest.epoch > first.epoch:
            mapfile.save(path, newest)
        return newest

    def _check_shape(self) -> None:
        asked = (
            ("nodes", self.options.nodes, len(self.nodes)),
            ("shards", self.options.shards, len(self.map.shards)),
        )
        for what, number, there in asked:
            if number is not None and number != there:
                raise ClusterError(
                    f"the cluster in {self.folder} has {there} {what}, not {number}",
                    f"leave --{what} out to start it as it is, or give another folder with --dir",
                )

    def metrics_address(self, name: str) -> str:
        """HOST:PORT of /metrics of a process: n1, n2, ..., router."""
        if name not in self._metrics:
            used = [self.router_address, *(each.address for each in self.map.nodes)]
            taken = [split_address(each)[1] for each in (*used, *self._metrics.values())]
            self._metrics[name] = f"{ports.LOOPBACK}:{ports.choose(1, taken=taken)[0]}"
        return self._metrics[name]

    def _process_settings(
        self, name: str, address: str
    ) -> dict[str, str | int | float | bool | Path]:
        values: dict[str, str | int | float | bool | Path] = {
            "listen_address": address,
            "metrics_address": self.metrics_address(name),
            "map_file": Path("../map.json"),
            "audit_file": Path("audit.jsonl"),
            "log_level": self.options.log_level,
            "log_format": "json",
            "stop_grace_s": STOP_GRACE_S,
        }
        if self.options.insecure:
            return {**values, "insecure": True}
        return {**values, "certs_folder": Path("../certs")}

    def _make_node(self, node: int) -> Child:
        home = self._home(node)
        home.mkdir(mode=0o700, exist_ok=True)
        values = self._process_settings(f"n{node}", self.address_of(node))
        values |= {"data_dir": Path("data"), "disk_reserve_bytes": DISK_RESERVE_BYTES}
        settings.dump(home / "node.toml", {"node": node, **values})
        arguments = ("node", "--config", str(home / "node.toml"))
        return Child(f"n{node}", arguments, self.logs_folder / f"n{node}.log")

    def _make_router(self) -> Child:
        home = self.folder / "router"
        home.mkdir(mode=0o700, exist_ok=True)
        values = self._process_settings("router", self.router_address)
        settings.dump(home / "router.toml", {**values, "drain_s": 0.0})
        arguments = ("router", "--config", str(home / "router.toml"))
        return Child("router", arguments, self.logs_folder / "router.log")

    def _write_run_file(self) -> None:
        assert self._router is not None

        def running(child: Child, node: int, address: str) -> runfile.RunningProcess:
            metrics = self.metrics_address(child.name)
            return runfile.RunningProcess(child.name, node, address, child.pid, metrics)

        router = running(self._router, 0, self.router_address)
        nodes = (running(child, node, self.address_of(node)) for node, child in self._nodes.items())
        folder = "" if self.options.insecure else "certs"
        run = runfile.RunFile(self.map.cluster_id, os.getpid(), folder, router, tuple(nodes))
        runfile.write(self.folder, run)


_REMOVED = cluster_pb2.NODE_STATE_REMOVED


def _node(number: int, port: int) -> cluster_pb2.Node:
    return cluster_pb2.Node(
        id=number,
        name=f"n{number}",
        address=f"{ports.LOOPBACK}:{port}",
        state=cluster_pb2.NODE_STATE_ACTIVE,
        weight_milli=WEIGHT_SHARE_MILLI,
    )


def _copy(path: Path) -> cluster_pb2.ClusterMap:
    """A node's copy of the map; none that counts where it has none, or a damaged one (it tells)."""
    try:
        return mapfile.load(path, sealed=True) if path.exists() else cluster_pb2.ClusterMap()
    except MapFileError:
        return cluster_pb2.ClusterMap()


def _is_ours(pid: int, folder: Path) -> bool:
    """True if the process runs and was started for this folder: numbers are used again."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(part.startswith(os.fsencode(folder) + b"/") for part in command)
