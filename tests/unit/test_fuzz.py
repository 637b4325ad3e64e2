"""No input crashes a decoder or holds it up. `make fuzz` feeds more of them than `make test`."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import google_crc32c
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from tests.unit.test_housekeeper import keeper
from tests.unit.test_services_node import ALICE, FakeNode, item, request_id

import fuzzing
import golden_samples
from mailbox_audit import audit
from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys, records
from mailraft.node.engine.errors import CorruptionError
from mailraft.node.engine.errors import UnknownFormatError as RecordFormatError
from mailraft.node.interfaces import Entry, EntryKind, LogCorruptError
from mailraft.node.mailstore import rules
from mailraft.node.mailstore.account_change import prefix_of
from mailraft.node.mailstore.errors import Refused, UnknownFormatError
from mailraft.node.services import message_text, mime
from mailraft.node.services.base import Call, Service, to_error
from mailraft.node.services.derive import DERIVED_MAX_BYTES, derive
from mailraft.node.services.register import services_of
from mailraft.v1 import account_pb2, blob_pb2, delivery_pb2, search_pb2
from mailraft.wire import bodies, errors, limits, tokens

pytestmark = pytest.mark.timeout(0 if fuzzing.inputs() > fuzzing.INPUTS_DEFAULT else 120)

MAIL = fuzzing.malformed_mail()
UPLOADS_SHARE = 20  # of all inputs, one in so many: each is half a MiB that is stored
NFKD_MAX_CHARS = 18  # of one character; and a byte is at most one
LARGE = b"Subject: large\r\n\r\n".ljust(600_000, b"x")  # two parts of an upload


def test_the_header_pass_and_the_mime_parser() -> None:
    """Any bytes have an envelope, a structure and a text, bounded, and places that are in the
    message.
    """

    def feed(raw: bytes) -> None:
        assert derive(raw).ByteSize() <= DERIVED_MAX_BYTES
        root = mime.parse(raw).root
        assert root.body_offset_bytes + root.body_size_bytes == len(raw)
        text = message_text.text_of(raw)
        assert len(text.body) <= NFKD_MAX_CHARS * len(raw)
        assert len(text.fields) <= message_text.FIELDS_MAX

    assert fuzzing.run("mail", MAIL, feed) > fuzzing.inputs()


DECODERS: list[tuple[Callable[[bytes], object], tuple[type[Exception], ...]]] = [
    (records.decode_identity, (CorruptionError,)),
    (records.decode_group, (CorruptionError,)),
    (records.decode_hard_state, (CorruptionError,)),
    (records.decode_applied, (CorruptionError,)),
    (lambda data: records.parse_entry(1, 2, data), (LogCorruptError,)),
    *((kind.FromString, (DecodeError,)) for kind in golden_samples.stored_types()),
]


def test_decoders_of_records() -> None:
    """Damaged records are read as something or refused with the error that says so."""
    seeds = [
        golden_samples.sample(kind).SerializeToString() for kind in golden_samples.stored_types()
    ]
    known = (RecordFormatError,)

    def feed(data: bytes) -> None:
        for decode, expected in DECODERS:
            with suppress(*expected, *known):
                decode(data)

    fuzzing.run("records", seeds, feed)


def test_bodies_and_tokens() -> None:
    """Damaged bodies are BodyCorruptError; foreign states, ids and tokens are refused as such."""
    raws = (b"x", b"mail " * 200, bytes(range(256)))
    seeds = [bodies.pack(raw, dictionary) for raw in raws for dictionary in (0, 1)]
    state = tokens.encode_state(tokens.State(1, 2, 3, 4))
    seeds += [each.encode() for each in (state, "M1a", "B1-2", tokens.page_token(("a",), b"xyz"))]

    def feed(data: bytes) -> None:
        for size_bytes in (1, 1_000, 256):
            with suppress(bodies.BodyCorruptError):
                bodies.unpack(data, size_bytes)
        text = data.decode("utf-8", "replace")
        for parse in (
            tokens.decode_state,
            tokens.parse_mailbox_id,
            tokens.parse_message_id,
            tokens.parse_thread_id,
            tokens.parse_blob_id,
        ):
            with suppress(ValueError):
                parse(text)
        with suppress(errors.BadPageTokenError):
            tokens.open_page_token(text, ("a",))

    fuzzing.run("tokens", seeds, feed)


async def _fed(services: list[Service], node: FakeNode, name: str, request: Message) -> None:
    """One request to one handler, as the server would run it."""
    unary = next(each.unary[name] for each in services if name in each.unary)
    try:
        async with asyncio.timeout(30):
            await unary(request, Call(node.now_s() + 5))
    except (errors.MailraftError, Refused) as error:
        told = to_error(error, name)
        assert not isinstance(told, errors.InternalError | errors.CommitUnknownError), told


def _requests(services: list[Service]) -> dict[str, type[Message]]:
    return {
        name: message_factory.GetMessageClass(each.descriptor.methods_by_name[name].input_type)
        for each in services
        for name in each.unary
    }


# What a field of this name holds where the request is to mean something.
_MEANT: dict[str, object] = {
    "account_id": ALICE,
    "mailbox_id": "F1",
    "source_mailbox_id": "F1",
    "mailbox_ids": "F1",
    "message_id": "M1",
    "message_ids": "M1",
    "ids": "M1",
    "blob_id": "B3-0",
    "thread_ids": "T1",
    "thread_id": "T1",
    "since_state": tokens.encode_state(tokens.State(0, 2, 1)),
    "has_keyword": "$seen",
    "name": "a name",
    "paths": "name",
    "targets": None,
    "raw": MAIL[0],
}
_LEFT_OUT = {"read_options", "write_options", "page_token", "uid_validity", "etag", "derived"}


def _filled(kind: type[Message], *, full: bool, depth: int = 1) -> Any:
    """A request with every field set, or the named ones only."""
    request: Any = kind()
    for field in kind.DESCRIPTOR.fields:
        if field.name in _LEFT_OUT or (field.name in _MEANT and _MEANT[field.name] is None):
            continue
        value = getattr(request, field.name)
        if field.name == "request_id":
            request.request_id = request_id()
        elif field.name in _MEANT and field.message_type is None:
            meant: Any = _MEANT[field.name]
            if field.is_repeated:
                value.append(meant)
            else:
                setattr(request, field.name, meant)
        elif field.message_type is None:
            if full and not field.is_repeated and not isinstance(value, str | bytes):
                setattr(request, field.name, 1)
        elif depth < 5 and (full or field.name in ("messages", "deliveries", "recipients")):
            assert isinstance(field.message_type, Descriptor)
            if field.message_type.GetOptions().map_entry:
                value["k"] = "v"
                continue
            child = _filled(
                message_factory.GetMessageClass(field.message_type), full=full, depth=depth + 1
            )
            (value.add() if field.is_repeated else value).CopyFrom(child)
    return request


def test_decoders_of_requests() -> None:
    """Whatever a request holds, its handler answers or refuses it with a reason of the API, and the
    state machine applies what was proposed: no incident, no command whose fate is not known.
    """
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        failed: list[object] = []
        loop.set_exception_handler(lambda _, context: failed.append(context))
        node = FakeNode()
        services = services_of(node, node, "0", runner.run(_event()))
        create = account_pb2.CreateAccountRequest(account_id=ALICE, request_id=request_id())
        append = delivery_pb2.AppendMessagesRequest(
            account_id=ALICE, request_id=request_id(), messages=[item(raw) for raw in MAIL[:3]]
        )
        runner.run(_fed(services, node, "CreateAccount", create))
        runner.run(_fed(services, node, "AppendMessages", append))
        view = node.shard_of(ALICE).view
        assert any(key for key in view.rows)
        kinds = _requests(services)
        names = sorted(kinds)
        meant = {kinds[name]: name for name in names}
        seeds = [_filled(kinds[name], full=full) for name in names for full in (False, True)]
        seeds += [_searching(field) for field in search_pb2.TextField.values()]
        wires = [
            bytes((names.index(meant[type(each)]),)) + each.SerializeToString() for each in seeds
        ]

        def feed_wire(data: bytes) -> None:
            if data:
                with suppress(DecodeError):
                    feed(kinds[names[data[0] % len(names)]].FromString(data[1:]))

        def feed(request: Any) -> None:
            name = meant[type(request)]
            if request.ByteSize() % 8:  # most shall get past the first checks
                if hasattr(request, "account_id"):
                    request.account_id = ALICE
                if hasattr(request, "request_id"):
                    request.request_id = request_id()
            if keys.account_record(prefix_of(ALICE)) not in view.rows:
                create.request_id, append.request_id = request_id(), request_id()
                runner.run(_fed(services, node, "CreateAccount", create))
                runner.run(_fed(services, node, "AppendMessages", append))
            runner.run(_fed(services, node, name, request))
            assert not failed, failed

        fuzzing.run("wire requests", wires, feed_wire)
        fuzzing.run_messages("requests", seeds, feed)


def _searching(field: int) -> search_pb2.SearchMessagesRequest:
    asked = search_pb2.MessageFilter(
        text=search_pb2.TextMatch(field=field, value="e")  # type: ignore[arg-type]
    )
    return search_pb2.SearchMessagesRequest(account_id=ALICE, filter=asked)


def test_streams_of_uploads() -> None:
    """Whatever a header or a chunk holds: taken, or refused with a reason of the API; and nothing
    is stored that is not counted.
    """
    with asyncio.Runner() as runner:
        node = FakeNode()
        services = services_of(node, node, "0", runner.run(_event()))
        upload = next(each.uploads["UploadBlob"] for each in services if each.uploads)
        create = account_pb2.CreateAccountRequest(account_id=ALICE, request_id=request_id())
        runner.run(_fed(services, node, "CreateAccount", create))
        header = blob_pb2.UploadHeader(
            account_id=ALICE, size_bytes=len(LARGE), sha256=hashlib.sha256(LARGE).digest()
        )
        chunks = [
            blob_pb2.UploadBlobRequest(
                chunk=blob_pb2.BlobChunk(data=data, crc32c=google_crc32c.value(data))
            )
            for data in (LARGE[at : at + 200_000] for at in range(0, len(LARGE), 200_000))
        ]

        async def send(first: blob_pb2.UploadHeader, *rest: blob_pb2.UploadBlobRequest) -> None:
            async def stream() -> AsyncIterator[blob_pb2.UploadBlobRequest]:
                for each in rest:
                    yield each

            try:
                async with asyncio.timeout(30):
                    await upload(first, stream())
            except (errors.MailraftError, Refused) as error:
                told = to_error(error, "UploadBlob")
                assert not isinstance(told, errors.InternalError | errors.CommitUnknownError), told

        def feed(request: blob_pb2.UploadBlobRequest) -> None:
            if request.WhichOneof("part") == "header":
                runner.run(send(request.header, *chunks))
            else:
                header.request_id = request_id()
                runner.run(send(header, chunks[0], request, chunks[2]))
            node.time_ms += limits.UPLOAD_WINDOW_MS  # else the account's uploads are too many
            while runner.run(keeper(node, node.time_ms).turn()):
                pass

        whole = blob_pb2.UploadBlobRequest(header=header)
        whole.header.request_id = request_id()
        fuzzing.run_messages("uploads", [whole, chunks[1]], feed, share=UPLOADS_SHARE)
        shard = node.shard_of(ALICE)
        audit(shard.view, shard.bodies)


async def _event() -> asyncio.Event:
    return asyncio.Event()


class _Log:
    """Commands about ALICE that a state machine applies one after the other, each twice."""

    def __init__(self) -> None:
        self.index = 10
        self.blob = record_pb2.BodyPosition()  # the last one that an upload became
        self._node = FakeNode()
        self._shard = self._node.shard_of(ALICE)
        self._upload_id = request_id()

    def has_account(self) -> bool:
        return self._shard.view.get(keys.account_record(prefix_of(ALICE))) is not None

    def apply(self, name: str, action: Any, number: int) -> None:
        self.index += 1
        if hasattr(action, "account_id") and number % 8:
            action.account_id = ALICE
        if name == "append" and number % 2:
            for each in action.items:
                each.blob.CopyFrom(self.blob)
        command = command_pb2.Command(
            time_ms=self._node.wall_ms() + self.index,
            request_id=self._upload_id if "upload" in name else request_id(),
            body_count=number % 3,
        )
        getattr(command, name).CopyFrom(action)
        batch = command_pb2.CommandBatch(format=1, commands=[command, command])
        entry = Entry(self.index, 1, EntryKind.COMMAND, batch.SerializeToString())
        try:
            done = self._shard.replica.machine.apply(self._shard.view, entry)
        except UnknownFormatError:
            return  # a later version wrote it: the replica waits for that
        self._shard.view.apply(done.effects)
        for reply in done.replies:
            if isinstance(reply, command_pb2.Reply) and reply.upload.HasField("blob"):
                self.blob.CopyFrom(reply.upload.blob)


def test_commands_in_the_log() -> None:
    """The state machine refuses or carries out any command that can be read at all: one that
    stopped it would stop every replica of the shard, for ever.
    """
    log = _Log()
    actions = command_pb2.Command.DESCRIPTOR.oneofs_by_name["action"].fields
    kinds = {}
    for field in actions:
        assert isinstance(field.message_type, Descriptor)
        kinds[field.name] = message_factory.GetMessageClass(field.message_type)
    meant = {kind: name for name, kind in kinds.items()}
    seeds = _uploading()
    for kind in meant:
        for full in (False, True):
            seed: Any = golden_samples.sample(kind) if full else kind()
            for precondition in ("if_in_state", "if_object"):
                if hasattr(seed, precondition):
                    seed.ClearField(precondition)
            if hasattr(seed, "messages") and hasattr(seed.messages, "uids"):
                seed.messages.CopyFrom(command_pb2.Selection(messages=[1, 2]))
            seeds.append(seed)

    def feed(action: Any) -> None:
        if not log.has_account():
            log.apply("create_account", command_pb2.CreateAccount(), 1)
            log.apply("append", _one_message(), 1)
        log.apply(meant[type(action)], action, action.ByteSize())

    fuzzing.run_messages("commands", seeds, feed)
    assert log.index > fuzzing.inputs()
    assert log.blob.index, "no upload was ever whole"


def _uploading() -> list[Any]:
    """An upload of two parts and a message of it, often: they have to come in this order."""
    first_bytes, last_bytes = rules.UPLOAD_PART_MIN_BYTES, 9
    begun = command_pb2.BeginUpload(size_bytes=first_bytes + last_bytes, sha256=bytes(32))
    parts = []
    for offset, size_bytes in ((0, first_bytes), (first_bytes, last_bytes)):
        body = command_pb2.NewBody(size_bytes=size_bytes, stored_bytes=9, sha256=bytes(32))
        parts.append(command_pb2.UploadPart(offset_bytes=offset, body=body))
    item = command_pb2.AppendItem(blob=record_pb2.BodyPosition())
    return [begun, *parts, command_pb2.Append(items=[item])] * 6


def _one_message() -> command_pb2.Append:
    append = command_pb2.Append()
    append.items.add().body.CopyFrom(
        command_pb2.NewBody(size_bytes=1, stored_bytes=9, sha256=bytes(32))
    )
    return append
