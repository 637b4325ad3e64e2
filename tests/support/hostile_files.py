"""The files of a node and a router, spoilt one by one, and what is seen of who starts then."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from rocksdict import Options, Rdict, WriteBatch

from guarded import Ended, Starter
from mailraft.node.engine import keys
from mailraft.v1 import (
    blob_pb2,
    blob_pb2_grpc,
    common_pb2,
    message_service_pb2,
    message_service_pb2_grpc,
)
from mailraft.wire.credentials import Credentials, open_sync_channel

READ_DEADLINE_S = 10.0
# RocksDB and RocksDict read none of these as data: they can be spoilt together.
SIDE_FILES = ("IDENTITY", "LOCK", "LOG", "OPTIONS", "rocksdict-config")
LOCAL = common_pb2.ReadOptions(consistency=common_pb2.CONSISTENCY_LOCAL)

Spoil = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Case:
    """What is done to the folder of a stopped cluster before one of its processes starts."""

    name: str
    kind: str  # node or router
    config: str  # relative to the folder
    spoil: Spoil


def text_cases(kind: str, config: str, pickle: bytes) -> Iterator[Case]:
    """Each file of text that this process reads: replaced by a pickle, and with it at its end."""
    name = {"node": "node-1", "router": "router"}[kind]
    certificates = (f"certs/{file}" for file in ("ca.pem", f"{name}.pem", f"{name}.key"))
    for path in (config, "map.json", *certificates):
        yield Case(f"{path} replaced", kind, config, _replacing([path], pickle))
        yield Case(f"{path} appended", kind, config, _appending([path], pickle))


def data_cases(home: Path, pickles: list[bytes]) -> Iterator[Case]:
    """The same of each file that a node stores its data in."""
    files = [path for path in sorted((home / "n1/data").rglob("*")) if path.is_file()]
    aside = [path for path in files if path.name.startswith(SIDE_FILES)]
    for group in (aside, *([path] for path in files if path not in aside)):
        paths = [str(path.relative_to(home)) for path in group]
        label, content = ", ".join(path.name for path in group), b"".join(pickles)
        yield Case(f"{label} replaced", "node", "n1/node.toml", _replacing(paths, content))
        yield Case(f"{label} appended", "node", "n1/node.toml", _appending(paths, content))


def value_cases(pickles: list[bytes]) -> Iterator[Case]:
    """Every row of the database holds a pickle as its value, as RocksDict would store it, one
    column family a time; and its settings say that values are Python objects.
    """
    for family in keys.COLUMN_FAMILIES:
        yield Case(f"rows of {family}", "node", "n1/node.toml", _storing([family], pickles, ()))
    # The row that says whose folder it is would end the start before the others are read.
    spared = _storing([keys.META], pickles, (keys.NODE,))
    yield Case("rows of meta but one", "node", "n1/node.toml", spared)


def run(
    case: Case, home: Path, folder: Path, starter: Starter
) -> tuple[Ended, list[grpc.StatusCode]]:
    """Start the process on a spoilt copy of the home, read all there is, stop it. Returns how it
    ended, and how every read did.
    """
    shutil.copytree(home, folder)
    case.spoil(folder)
    process = starter.start(case.kind, folder / case.config, folder.with_suffix(".log"))
    reads: list[grpc.StatusCode] = []
    try:
        address = process.wait_serves()
        if address and case.kind == "node":
            reads = list(_read_all(address, home / "certs"))
    finally:
        ended = process.stop()
        shutil.rmtree(folder)
    return ended, reads


def in_log(database: Path, pickles: list[bytes]) -> set[bytes]:
    """Which of the pickles lie in the log of a node that is stopped."""
    db, families = _open(database)
    rows = families[keys.LOG].iter()
    rows.seek_to_first()
    found: set[bytes] = set()
    while rows.valid():
        value = rows.value()
        found |= {pickle for pickle in pickles if pickle in value}
        rows.next()
    rows.status()
    del rows
    _close(db, families)
    return found


def _replacing(paths: list[str], content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        for path in paths:
            (folder / path).write_bytes(content)

    return spoil


def _appending(paths: list[str], content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        for path in paths:
            with (folder / path).open("ab") as file:
                file.write(content)

    return spoil


def _storing(names: list[str], pickles: list[bytes], spared: tuple[bytes, ...]) -> Spoil:
    def spoil(folder: Path) -> None:
        database = folder / "n1/data/db"
        db, families = _open(database)
        batch = WriteBatch(raw_mode=True)
        for name in names:
            handle = db.get_column_family_handle(name)
            rows = families[name].iter()
            rows.seek_to_first()
            number = 0
            while rows.valid():
                if rows.key() not in spared:
                    batch.put(rows.key(), pickles[number % len(pickles)], handle)
                number += 1
                rows.next()
            assert number, f"there is nothing in {name}"
            del rows, handle
        db.write(batch)
        _close(db, families)
        config = database / "rocksdict-config.json"
        assert '"raw_mode":true' in config.read_text("utf-8")
        config.write_text('{"raw_mode":false,"prefix_extractors":{}}', "utf-8")

    return spoil


def _open(database: Path) -> tuple[Rdict, dict[str, Rdict]]:
    names = keys.COLUMN_FAMILIES
    options = {name: Options(raw_mode=True) for name in names}
    db = Rdict(str(database), Options(raw_mode=True), options)
    return db, {name: db.get_column_family(name) for name in names}


def _close(db: Rdict, families: dict[str, Rdict]) -> None:
    for family in families.values():
        family.close()
    db.close()


def _read_all(address: str, certs: Path) -> Iterator[grpc.StatusCode]:
    """How the reads of alice's messages and their bytes end."""
    with open_sync_channel(address, Credentials(certs, "client")) as channel:
        listing = message_service_pb2.ListMessagesRequest(
            account_id="alice",
            read_options=LOCAL,
            mailbox_role=common_pb2.MAILBOX_ROLE_INBOX,
        )
        stub = message_service_pb2_grpc.MessageServiceStub(channel)
        try:
            messages = stub.ListMessages(listing, timeout=READ_DEADLINE_S).messages
        except grpc.RpcError as error:
            yield error.code()
            return
        blobs = blob_pb2_grpc.BlobServiceStub(channel)
        for message in messages:
            request = blob_pb2.GetBlobRequest(
                account_id="alice", read_options=LOCAL, message_id=message.id
            )
            try:
                blobs.GetBlob(request, timeout=READ_DEADLINE_S)
                yield grpc.StatusCode.OK
            except grpc.RpcError as error:
                yield error.code()
