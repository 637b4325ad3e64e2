"""Nothing from a socket or a disk is ever unpickled: hostile pickles at every port and in every
file of real processes, under a guard that would record it and end the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

import hostile_pickles as hostile
import hostile_ports
from guarded import CLI, Ended, GuardedChild, Starter, Traps, command
from hostile_calls import Filling, send, send_instead, send_within
from hostile_files import Case, data_cases, in_log, run, text_cases, value_cases
from mailraft.client.ids import request_ids
from mailraft.cluster import certs, mapfile, ports, settings
from mailraft.cluster.errors import ExitCode
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.internal.v1 import peer_service_pb2_grpc, raft_pb2
from mailraft.node.consensus.messages import entry_to_wire
from mailraft.node.interfaces import Entry, EntryKind, replica_id
from mailraft.router import ring
from mailraft.v1 import account_pb2, cluster_pb2
from mailraft.wire import feature_levels
from mailraft.wire.credentials import Credentials, open_channel, open_sync_channel
from mailraft.wire.metadata import ACCOUNT_KEY, EPOCH_KEY, encode_account
from unpickling_guard import UNPICKLED_STATUS

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(180)]

SUPPORT = Path(hostile.__file__).parent

# ---- the traps work ------------------------------------------------------------------------------

WAYS = {
    "pickle.loads": "pickle.loads(data)",
    "pickle.load": "pickle.load(io.BytesIO(data))",
    "pickle.Unpickler": "pickle.Unpickler(io.BytesIO(data)).load()",
    "one derived from it": "type('U', (pickle.Unpickler,), {})(io.BytesIO(data)).load()",
    "the one in Python": "pickle._Unpickler(io.BytesIO(data)).load()",
    "the one in C": "import _pickle; _pickle.loads(data)",
    "kept from before": "before(data)",
    "multiprocessing": "from multiprocessing.reduction import ForkingPickler as F; F.loads(data)",
    "pysyncobj": "import pysyncobj.pickle; pysyncobj.pickle.loads(data)",
    "rocksdict": "import rocksdict; d = rocksdict.Rdict(records + '/db'); d['k'] = [1]; d['k']",
}


def unpickle(tmp_path: Path, way: str, payload: bytes) -> tuple[int, Traps]:
    """Unpickle under the guard in a process of its own; its exit status."""
    traps = Traps.below(tmp_path)
    code = f"""
import io, pickle, sys
from pathlib import Path
before, data, records = pickle.loads, {payload!r}, {str(traps.records)!r}
sys.path.insert(0, {str(SUPPORT)!r})
import unpickling_guard
unpickling_guard.arm(Path(records))
{way}
"""
    return subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode, traps


@pytest.mark.parametrize("way", WAYS)
def test_the_guard_sees_every_way_to_unpickle(tmp_path: Path, way: str) -> None:
    """Whoever unpickles is recorded and ended, before the pickle has done what it does."""
    status, traps = unpickle(tmp_path, WAYS[way], hostile.binary(tmp_path / "marker"))
    assert status == UNPICKLED_STATUS
    assert "Traceback" not in traps.sprung()
    assert "<string>" in traps.sprung(), "the record says where"
    assert not traps.marker.exists()


def test_the_guard_lets_others_pass(tmp_path: Path) -> None:
    """Bytes that nobody unpickles do nothing, and pickling is no unpickling."""
    status, traps = unpickle(tmp_path, "pickle.dumps(data)", b"")
    assert status == 0
    assert traps.sprung() == ""


def test_the_pickles_are_hostile(tmp_path: Path) -> None:
    """Where no guard stands they make their file: that there is none means something."""
    for number, form in enumerate((hostile.text, hostile.binary)):
        marker = tmp_path / f"marker-{number}"
        payload = form(marker)
        data = payload.encode() if isinstance(payload, str) else payload
        code = f"import pickle; pickle.loads({data!r})"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
        assert marker.exists()


# ---- ports ---------------------------------------------------------------------------------------

NODES, SHARDS = 2, 2
ACCOUNT = "alice"


@dataclass(frozen=True, slots=True)
class Trapped:
    """A cluster whose processes are all guarded."""

    cluster: LocalCluster
    traps: Traps
    pickles: Sequence[bytes]

    @property
    def children(self) -> list[GuardedChild]:
        return [child for child in self.cluster.children() if isinstance(child, GuardedChild)]

    @property
    def addresses(self) -> list[str]:
        """Of every gRPC port."""
        return [self.cluster.router_address, *(node.address for node in self.cluster.map.nodes)]

    def check(self) -> None:
        """Nothing was unpickled, and every process is guarded and goes on."""
        assert self.traps.sprung() == ""
        assert len(self.children) == NODES + 1
        for child in self.children:
            child.check_running()
            assert self.traps.armed(child.pid)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trapped(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trapped]:
    """Guarded nodes and a guarded router, with TLS and metrics, ready."""
    folder = tmp_path_factory.mktemp("trapped")
    traps = Traps.below(folder)
    cluster = LocalCluster(folder, LocalOptions(nodes=NODES, shards=SHARDS))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mailraft.cluster.local.Child", GuardedChild)
            await cluster.launch()
        await cluster.wait_ready()
        async with cluster.client() as client:
            await client.create_account(ACCOUNT)
        yield Trapped(cluster, traps, hostile.everyhow(traps.marker))
    finally:
        await cluster.stop()
    assert traps.sprung() == "", "at the end of a process"


@pytest.mark.asyncio(loop_scope="module")
async def test_raw_bytes_at_every_port(trapped: Trapped) -> None:
    """Pickles as the first bytes of a connection, in a TLS session that a valid certificate opened,
    and as frames of HTTP/2 or requests of HTTP/1: at the ports of calls and of metrics.
    """
    certs = trapped.cluster.certs_folder
    assert certs is not None
    framed = [each for pickle in trapped.pickles[:2] for each in hostile_ports.over_http2(pickle)]
    requests = [each for pickle in trapped.pickles for each in hostile_ports.over_http1(pickle)]
    async with asyncio.TaskGroup() as group:
        for address in trapped.addresses:
            group.create_task(hostile_ports.throw(address, trapped.pickles))
            for name in ("client", "node-1"):
                tls = hostile_ports.tls(certs, name)
                pieces = [*trapped.pickles, *framed]
                group.create_task(hostile_ports.throw(address, pieces, tls))
        for child in trapped.children:
            pieces = [*trapped.pickles, *requests]
            group.create_task(hostile_ports.throw(child.metrics_address, pieces))
    trapped.check()


@pytest.mark.asyncio(loop_scope="module")
async def test_every_call(trapped: Trapped) -> None:
    """Every method of every service, at every process: pickles as the message, and in every field
    of bytes or text, behind a valid account and request id too. No handler falls over, and none
    logs what was sent.
    """
    marker = trapped.traps.marker
    payload, text, token = hostile.binary(marker), hostile.text(marker), hostile.token(marker)
    known: dict[str, str | bytes] = {"account_id": ACCOUNT, "request_id": request_ids.next()}
    for address in trapped.addresses:
        async with open_channel(address, trapped.cluster.credentials("node-1")) as channel:
            # What grpc cannot parse it refuses in its own ways.
            assert await send_instead(channel, trapped.pickles)
            answers = await send_within(channel, Filling(payload, text))
            answers += await send_within(channel, Filling(payload, text, known))
            answers += await send_within(channel, Filling(payload, token, known))
        assert [answer for answer in answers if not answer.is_clear] == []
    trapped.check()
    for child in trapped.children:
        lines = child.log_path.read_bytes().splitlines()
        # Lines of ours: gRPC's own core repeats what it does not understand.
        assert [line for line in lines if line[:1] == b"{" and str(marker).encode() in line] == []


@pytest.mark.asyncio(loop_scope="module")
async def test_metadata(trapped: Trapped) -> None:
    """Pickles as the values of metadata, ours, gRPC's and anybody's."""
    text = encode_account(hostile.text(trapped.traps.marker))
    own: list[tuple[str, str | bytes]]
    own = [(key, text) for key in (ACCOUNT_KEY, EPOCH_KEY, "authorization", "grpc-encoding")]
    binary = ("grpc-status-details-bin", "grpc-trace-bin", "grpc-tags-bin", "hostile-bin")
    pairs = [*own, *((key, pickle) for key in binary for pickle in trapped.pickles)]
    request = account_pb2.GetAccountRequest(account_id=ACCOUNT).SerializeToString()
    path = "/mailraft.v1.AccountService/GetAccount"
    for address in trapped.addresses:
        async with open_channel(address, trapped.cluster.credentials("client")) as channel:
            for pair in pairs:
                assert (await send(channel, path, [request], [pair])).is_clear
    trapped.check()


@pytest.mark.asyncio(loop_scope="module")
async def test_mail_that_is_a_pickle(trapped: Trapped, tmp_path: Path) -> None:
    """It is mail like any other, given back byte for byte; the commands take it from files too."""
    async with trapped.cluster.client() as client:
        for pickle in trapped.pickles:
            receipt = await client.deliver(pickle, to=[ACCOUNT])
            message = receipt.recipients[0].message_id
            assert await client.fetch_body(ACCOUNT, message) == pickle
    certs, address = str(trapped.cluster.certs_folder), trapped.cluster.router_address
    connection = ("--server", address, "--certs", certs)
    (tmp_path / "mail").write_bytes(trapped.pickles[1])
    deliver = ("mail", "deliver", str(tmp_path / "mail"), "--to", ACCOUNT, "-o", "json")
    (outcome,) = json.loads(await mailraft(trapped.traps, *deliver, *connection))
    fetch = ("mail", "fetch", ACCOUNT, outcome["message_id"])
    assert await mailraft(trapped.traps, *fetch, *connection) == trapped.pickles[1]
    trapped.check()


async def mailraft(traps: Traps, *arguments: str) -> bytes:
    """What the command prints, run under the guard."""
    process = await asyncio.create_subprocess_exec(
        *command(traps.records, CLI, *arguments), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed


# ---- peers ---------------------------------------------------------------------------------------

LONE, LEADER = 1, 2
TERM = 1_000
GROUPS = {1: EntryKind.NOOP, 2: EntryKind.COMMAND, 3: EntryKind.CONFIGURATION}
CAUGHT_UP_DEADLINE_S = 20.0


def lone_node(folder: Path) -> Path:
    """The settings of one node of three; the others will not be there."""
    nodes = [
        cluster_pb2.Node(id=number, name=f"n{number}", address=f"{ports.LOOPBACK}:{port}")
        for number, port in enumerate(ports.choose(3), 1)
    ]
    for node in nodes:
        node.weight_milli = ring.WEIGHT_SHARE_MILLI
    mapfile.save(folder / "map.json", mapfile.make(nodes, len(GROUPS), cluster_id="lone"))
    certs.ensure(folder / "certs", certs.names_of([1, 2, 3]))
    config = folder / "node.toml"
    values = {"map_file": Path("map.json"), "certs_folder": Path("certs"), "data_dir": Path("data")}
    settings.dump(config, {"node": LONE, **values})
    return config


def hostile_frames(pickles: Sequence[bytes]) -> Iterator[raft_pb2.ExchangeRequest]:
    """What another node may send once it is believed to lead: its log, all committed, with pickles
    as the payload and the bodies of every entry.
    """
    hello = raft_pb2.Hello(
        feature_level=feature_levels.LEVEL,
        cluster_id="lone",
        from_node=LEADER,
        to_node=LONE,
        session=time.time_ns(),
    )
    yield raft_pb2.ExchangeRequest(hello=hello)
    for group, kind in GROUPS.items():
        entries = [
            entry_to_wire(Entry(index, TERM, kind, pickle, (pickle,)))
            for index, pickle in enumerate(pickles, 2)
        ]
        append = raft_pb2.AppendEntries(
            prev_log_index=1, prev_log_term=0, commit_index=len(pickles) + 1, entries=entries
        )
        envelope = raft_pb2.Envelope(
            group=group,
            from_replica=replica_id(LEADER, 1),
            to_replica=replica_id(LONE, 1),
            term=TERM,
            append_entries=append,
        )
        yield raft_pb2.ExchangeRequest(envelopes=[envelope])


@pytest.mark.slow
def test_a_hostile_leader(tmp_path: Path) -> None:
    """Pickles as entries of the log, from a node that has a certificate and keeps to the protocol,
    get as far as the state machine, which stops its replica; so again after a restart, when they
    come from the disk. Nothing unpickles them.
    """
    traps, config = Traps.below(tmp_path), lone_node(tmp_path)
    pickles = hostile.everyhow(traps.marker)
    with Starter(traps) as starter:
        for come_from in ("peer", "disk"):
            node = starter.start("node", config, tmp_path / f"{come_from}.log")
            try:
                address = node.wait_serves()
                assert address, node.log
                if come_from == "peer":
                    lead(address, Credentials(tmp_path / "certs", "node-2"), pickles)
                    until_s = time.monotonic() + CAUGHT_UP_DEADLINE_S
                    while "shard 2 cannot apply entry 2" not in node.log:
                        assert traps.sprung() == ""
                        assert time.monotonic() < until_s, node.log
                        time.sleep(0.05)
            finally:
                ended = node.stop()
            assert traps.sprung() == ""
            assert traps.armed(ended.pid)
            assert ended.status == 0
            assert in_log(tmp_path / "data/db", pickles) == set(pickles)


def lead(address: str, credentials: Credentials, pickles: Sequence[bytes]) -> None:
    """Be a leader to the node at an address, and have it take everything."""
    with open_sync_channel(address, credentials) as channel:
        stub = peer_service_pb2_grpc.PeerServiceStub(channel)
        stub.Exchange(hostile_frames(pickles), timeout=CAUGHT_UP_DEADLINE_S)


# ---- files ---------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a cluster of one node, which was stopped once and then killed: there is mail in
    its tables, its blob files and its log.
    """
    folder = tmp_path_factory.mktemp("home") / "cluster"
    for killed in (False, True):
        async with LocalCluster(folder, LocalOptions(nodes=1, shards=2)) as cluster:
            await cluster.wait_ready()
            async with cluster.client() as client:
                if not killed:
                    await client.create_account(ACCOUNT)
                for size_bytes in (10, 100, 1_000, 10_000):
                    await client.deliver(os.urandom(size_bytes), to=[ACCOUNT])
            if killed:
                cluster.kill(1)
    return folder


def run_all(cases: Iterable[Case], home: Path, folder: Path, traps: Traps) -> dict[str, str]:
    """Start a process for each case. What it did, where that was not right."""
    wrong: dict[str, str] = {}
    with Starter(traps) as starter:
        for number, case in enumerate(cases):
            ended, reads = run(case, home, folder / f"case-{number}", starter)
            problem = what_is_wrong(ended, reads, traps)
            if problem:
                wrong[case.name] = problem
    return wrong


def what_is_wrong(ended: Ended, reads: Sequence[grpc.StatusCode], traps: Traps) -> str:
    """A process runs, and answers every read clearly, or says in its last line why it does not."""
    if not traps.armed(ended.pid):
        return f"it was not guarded: {ended.log}"
    if ended.served:
        bugs = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL} & set(reads)
        return f"it answers {bugs}: {ended.log}" if bugs else ""
    last = (ended.log.splitlines() or [""])[-1]
    clear = last.startswith("error: ") and "Traceback" not in ended.log
    refused = ended.status in (ExitCode.FAILED, ExitCode.USAGE)
    return "" if clear and refused else f"it ended with {ended.status}: {ended.log}"


@pytest.mark.slow
def test_every_file(home: Path, tmp_path: Path) -> None:
    """Each file that a node or a router reads, replaced by pickles and with pickles at its end: the
    process runs, or refuses to with one clear line.
    """
    traps = Traps.below(tmp_path)
    pickles = hostile.everyhow(traps.marker)
    cases = [
        *text_cases("node", "n1/node.toml", pickles[0]),
        *text_cases("router", "router/router.toml", pickles[0]),
        *data_cases(home, pickles),
    ]
    wrong = run_all(cases, home, tmp_path, traps)
    assert traps.sprung() == ""
    assert wrong == {}


@pytest.mark.slow
def test_every_row(home: Path, tmp_path: Path) -> None:
    """Pickles as the values of the database, and RocksDict's settings changed to Python objects:
    the store is opened raw all the same, and the node runs or refuses clearly.
    """
    traps = Traps.below(tmp_path)
    cases = value_cases(hostile.everyhow(traps.marker))
    wrong = run_all(cases, home, tmp_path, traps)
    assert traps.sprung() == ""
    assert wrong == {}


async def test_files_of_commands(home: Path, tmp_path: Path) -> None:
    """Commands that find pickles where they look for a running cluster, for certificates or for
    mail end with one clear line.
    """
    traps = Traps.below(tmp_path)
    pickle, text = hostile.binary(traps.marker), hostile.text(traps.marker)
    for name, content in (
        ("replaced", pickle),
        ("filled", json.dumps(run_file_of(text)).encode()),
    ):
        (tmp_path / name / ".mailraft").mkdir(parents=True)
        (tmp_path / name / ".mailraft/run.json").write_bytes(content)
    spoilt = shutil.copytree(home / "certs", tmp_path / "certs")
    (spoilt / "ca.pem").write_bytes(pickle)
    (tmp_path / "corpus.tar.zst").write_bytes(pickle)
    status, in_spoilt = (CLI, "cluster", "status"), ("--dir", str(spoilt))
    demo = ("mailraft.cluster.demo", "--dir", str(tmp_path / "demo"))
    printed = await asyncio.gather(
        failing(traps, tmp_path / "replaced", *status),
        failing(traps, tmp_path / "filled", *status),
        failing(traps, tmp_path, CLI, "certs", "list", *in_spoilt),
        failing(traps, tmp_path, CLI, "certs", "init", *in_spoilt),
        failing(traps, tmp_path, *demo, "--corpus", str(tmp_path / "corpus.tar.zst")),
    )
    for each in printed:
        assert "error: " in each
        assert "Traceback" not in each
    assert traps.sprung() == ""


def run_file_of(text: str) -> object:
    """A run.json of the right form, with the text wherever there is any."""
    process = {"name": text, "node": 1, "address": text, "pid": 1}
    told = {"cluster_id": text, "pid": 1, "certs": text}
    return {"version": 1, **told, "router": process, "nodes": [process]}


async def failing(traps: Traps, folder: Path, module: str, *arguments: str) -> str:
    """What a command prints that has to fail, run in a folder, under the guard."""
    process = await asyncio.create_subprocess_exec(
        *command(traps.records, module, *arguments),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    assert process.returncode not in (0, UNPICKLED_STATUS), printed
    return printed.decode("utf-8", "replace")
