import email
import email.message
import os
import tracemalloc
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_services_node import ALICE, delivery, refusal, running
from tests.unit.test_services_upload import chunks, header, send

from mailraft.cluster.corpus import Corpus, default_path
from mailraft.node.services import mime, structure
from mailraft.node.services.pieces import Pieces
from mailraft.v1 import blob_pb2, delivery_pb2
from mailraft.wire import errors

IN_PLACE = ("7bit", "8bit", "binary")


def corpora() -> list[Path]:
    """The messages of the repository, and the corpus where it is at hand."""
    named = os.environ.get("MAILRAFT_CORPUS", "")
    beside = Path(named) if named else default_path().parents[2] / "shared" / "corpus"
    return [default_path(), *([beside] if beside.exists() else [])]


def flat(part: blob_pb2.BodyPart) -> Iterator[blob_pb2.BodyPart]:
    """The part and all within, in order."""
    yield part
    for each in part.parts:
        yield from flat(each)


def flat_stdlib(message: email.message.Message) -> Iterator[email.message.Message]:
    """The same of the standard library's, without what IMAP has no parts for."""
    yield message
    kind = message.get_content_type()
    encoding = str(message.get("content-transfer-encoding", "7bit")).strip().lower()
    if kind.startswith("message/") and (
        kind not in ("message/rfc822", "message/global") or encoding not in IN_PLACE
    ):
        return
    if message.is_multipart():
        for each in message.get_payload():
            assert isinstance(each, email.message.Message)
            yield from flat_stdlib(each)


def check_places(raw: bytes, told: mime.Structure) -> None:
    """Every part lies within its parent, behind the one before it, body behind header."""
    parts = list(flat(told.root))
    assert len(parts) <= mime.PARTS_MAX
    assert (
        parts[0].header_offset_bytes,
        parts[0].body_offset_bytes + parts[0].body_size_bytes,
    ) == (
        0,
        len(raw),
    )
    for part in parts:
        assert part.header_offset_bytes + part.header_size_bytes == part.body_offset_bytes
        place = part.body_offset_bytes
        for each in part.parts:
            assert each.header_offset_bytes >= place
            place = each.body_offset_bytes + each.body_size_bytes
        assert place <= part.body_offset_bytes + part.body_size_bytes
    assert len({part.part_id for part in parts if part.part_id}) <= len(parts)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", corpora(), ids=lambda path: path.name)
def test_the_parts_are_those_of_the_standard_library(path: Path) -> None:
    """Of every message that the standard library finds no fault with: the same parts, of the same
    types, with the same bytes. Of all others: no failure, and places that are within each other.
    """
    compared = 0
    for message in Corpus(path):
        told = mime.parse(message.raw)
        check_places(message.raw, told)
        other = email.message_from_bytes(message.raw)
        if told.truncated or any(part.defects for part in other.walk()):
            continue
        ours, theirs = list(flat(told.root)), list(flat_stdlib(other))
        kinds = [f"{part.type}/{part.subtype}" for part in ours]
        assert kinds == [part.get_content_type() for part in theirs], message.name
        for part, their in zip(ours, theirs, strict=True):
            payload = their._payload  # type: ignore[attr-defined]  # as it is, not decoded
            if isinstance(payload, str):
                end = part.body_offset_bytes + part.body_size_bytes
                body = message.raw[part.body_offset_bytes : end]
                assert body == payload.encode("utf-8", "surrogateescape"), message.name
        compared += 1
    assert compared > 15


NESTED = (
    b"From: a@example.org\r\nContent-Type: multipart/mixed; boundary=out\r\n\r\n"
    b"preamble\r\n--out\r\n\r\nfirst\r\n--out\r\n"
    b"Content-Type: message/rfc822\r\nContent-Description: =?utf-8?q?fw=C3=A4?=\r\n\r\n"
    b'Subject: inner\r\nContent-Type: multipart/alternative;\r\n boundary="in ner"\r\n\r\n'
    b"--in ner\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>\r\n--in ner \t\r\n"
    b"Content-Type: application/pdf; name*0*=utf-8''%C3%A4; name*1=\".pdf\"\r\n"
    b'Content-Disposition: Attachment; filename="a \\"b\\".pdf"\r\n'
    b"Content-Transfer-Encoding: BASE64\r\nContent-ID: <x@y>\r\nContent-Language: de, en\r\n"
    b"Content-Location: here\r\nContent-MD5: abc==\r\n\r\nAAAA\r\n--in ner--\r\n"
    b"\r\n--out--\r\nend\r\n"
)


async def test_a_part_is_a_range() -> None:
    """BODY[2.2] and every other part is a slice of the message, by the places that are told."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        [[stored]] = await calls.deliver(delivery(NESTED, ALICE))
        request = blob_pb2.GetStructureRequest(account_id=ALICE, message_id=stored.message_id)
        for _ in range(2):  # computed, then remembered
            told = await calls.blobs.GetStructure(request)
            assert (told.blob_id, told.truncated, bool(told.state)) == (stored.blob_id, False, True)
            parts = {part.part_id: part for part in flat(told.root)}
            bodies = {}
            for part_id, part in parts.items():
                got = await calls.blobs.GetBlob(
                    blob_pb2.GetBlobRequest(
                        account_id=ALICE,
                        message_id=stored.message_id,
                        offset_bytes=part.body_offset_bytes,
                        length_bytes=part.body_size_bytes,
                    )
                )
                bodies[part_id] = got.content.raw
            assert bodies["1"] == b"first"
            assert bodies["2"].startswith(b"Subject: inner\r\n")
            assert bodies["2"].endswith(b"--in ner--\r\n")
            assert bodies["2.1"] == b"<p>"
            assert bodies["2.2"] == b"AAAA"


def test_what_is_told_of_a_part() -> None:
    """Types, parameters (RFC 2231), disposition, ids, languages, lines and defaults (RFC 2045)."""
    root = mime.parse(NESTED).root
    assert (root.part_id, root.type, root.subtype) == ("", "multipart", "mixed")
    first, forwarded = root.parts
    assert (first.type, first.subtype, first.encoding, first.body_lines) == (
        "text",
        "plain",
        "7bit",
        1,
    )
    assert [(each.name, each.value) for each in first.parameters] == [("charset", "us-ascii")]
    assert (forwarded.part_id, forwarded.description) == ("2", "fwä")
    (inner,) = forwarded.parts
    assert (inner.type, inner.part_id, inner.envelope.subject) == ("multipart", "", "inner")
    pdf = inner.parts[1]
    assert (pdf.part_id, pdf.subtype, pdf.encoding, pdf.content_id) == (
        "2.2",
        "pdf",
        "base64",
        "x@y",
    )
    assert [(each.name, each.value) for each in pdf.parameters] == [("name", "ä.pdf")]
    assert (pdf.disposition, pdf.disposition_parameters[0].value) == ("attachment", 'a "b".pdf')
    assert (list(pdf.languages), pdf.location, pdf.md5) == (["de", "en"], "here", "abc==")


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
def test_every_line_end(end: bytes) -> None:
    """CRLF, LF and CR alone: the same parts, and the line end before a delimiter belongs to it."""
    raw = NESTED.replace(b"\r\n", end)
    bodies = [
        raw[part.body_offset_bytes :][: part.body_size_bytes]
        for part in flat(mime.parse(raw).root)
        if not part.parts
    ]
    assert bodies == [b"first", b"<p>", b"AAAA"]


PIECES = st.sampled_from(
    [
        b"--a",
        b"--a--",
        b"--b",
        b"\r\n",
        b"\n",
        b"\r",
        b"\n\n",
        b"Content-Type: multipart/mixed; boundary=a",
        b'content-type:multipart/digest;boundary="b"',
        b"Content-Type: message/rfc822",
        b"Content-Disposition: x; a*0*=%; a*1",
        b"Content-Transfer-Encoding: base64",
        b"text",
        b" ",
        b"\x00\xff",
        b"From x",
        b": ",
        b';="',
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=60).map(b"".join))
def test_any_bytes_have_a_structure(raw: bytes) -> None:
    """No input fails, and the places are always within each other."""
    check_places(raw, mime.parse(raw))


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=60).map(b"".join), st.lists(st.integers(1, 9), max_size=400))
def test_in_pieces_as_in_one(raw: bytes, sizes: list[int]) -> None:
    """Wherever the bytes are cut, the structure is the same."""
    assert mime.parse_pieces(cut(raw, sizes)) == mime.parse(raw)


def test_delimiters_across_pieces() -> None:
    """Pieces of any one size: every delimiter and line end lies across some of them."""
    told = mime.parse(NESTED)
    for size in range(1, 100):
        assert mime.parse_pieces(cut(NESTED, [size] * len(NESTED))) == told


def cut(raw: bytes, sizes: list[int]) -> Pieces:
    """The bytes in pieces of these sizes, and the rest."""
    places = [min(place, len(raw)) for place in accumulate(sizes, initial=0)]
    parts = [raw[begin:end] for begin, end in pairwise([*places, len(raw)]) if begin < end]
    return Pieces([len(part) for part in parts], parts.__getitem__)


@pytest.mark.parametrize("size", [4_000, 4_090, 4_096, 4_097, 70_000])
@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
def test_headers_longer_than_what_is_looked_at(size: int, end: bytes) -> None:
    """The body begins where it does, whatever part of the header is looked at first."""
    for more in range(4):
        field = b"X-Long: " + b"a" * (size + more - 8)
        raw = end.join([b"Content-Type: text/html", field, b"X: y", b"", b"body"])
        told = mime.parse(raw)
        assert told.root.body_offset_bytes == len(raw) - 4
        assert mime.parse_pieces(cut(raw, [100] * 50)) == told


def test_few_pieces_are_in_memory() -> None:
    """40 MiB in pieces of a MiB, nested three deep, take a few MiB."""
    part = b"x" * 997 + b"\r\n"
    inner = b"Content-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\n\r\n"
    ahead = b"Content-Type: multipart/mixed; boundary=out\r\n\r\n--out\r\n"
    ahead += b"Content-Type: message/rfc822\r\n\r\n" + inner
    behind = b"\r\n--in--\r\n--out--\r\n"
    size = 1024 * 1024

    def opened(number: int) -> bytes:
        text = (part * (size // len(part) + 1))[: size - len(ahead) - len(behind)]
        return (
            (ahead if number == 0 else b"." * len(ahead))
            + text
            + (behind if number == 39 else b"." * len(behind))
        )

    tracemalloc.start()
    told = mime.parse_pieces(Pieces([size] * 40, opened))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (forwarded,) = told.root.parts
    assert forwarded.parts[0].parts[0].body_size_bytes == 40 * size - len(ahead) - len(behind)
    assert peak_bytes < 8 * size


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: multipart/mixed; boundary=a\n\n" + b"--a\n\n" * 200_000,
        b"Content-Type: multipart/mixed; boundary=a\n\n" + b"--a\nx" * 200_000,
        b"Content-Type: message/rfc822\n\n" * 50_000,
        b"".join(
            b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(3_000)
        ),
        b"Content-Type: text/plain" + b"; a*0*=x" * 20_000 + b"\n\n",
        b'Content-Type: text/plain; x="' + b"\\" * 100_000 + b"\n\n",
        b"a:" * 500_000,
        b" \n" * 500_000,
        b"Content-Type: (" * 50_000,
        b"-" * 1_000_000,
    ],
    ids=range(10),
)
@pytest.mark.timeout(20)
def test_hostile_messages_are_bounded(raw: bytes) -> None:
    """Many parts, deep nesting and endless fields cost little time and a bounded answer."""
    told = mime.parse(raw)
    check_places(raw, told)
    assert told.root.ByteSize() < 3 * 1024 * 1024


async def test_structures_that_are_refused() -> None:
    """A message that is not there, and one whose bytes are damaged here."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        [[stored]] = await calls.deliver(delivery(NESTED, ALICE))
        request = blob_pb2.GetStructureRequest(account_id=ALICE, message_id="Mzz")
        error = await refusal(calls.blobs.GetStructure(request))
        assert isinstance(error, errors.MessageNotFoundError)
        node.shard_of(ALICE).bodies.clear()
        request.message_id = stored.message_id
        error = await refusal(calls.blobs.GetStructure(request))
        assert isinstance(error, errors.BlobCorruptError)


async def test_a_part_of_a_large_message_is_damaged() -> None:
    """It is told, though the parts are read one after the other."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        raw = NESTED.replace(b"first", b"x" * 3 * 1024 * 1024)
        done = await send(calls, header(raw), chunks(raw))
        stored = await calls.append(ALICE, delivery_pb2.AppendItem(blob_id=done.blob_id))
        request = blob_pb2.GetStructureRequest(
            account_id=ALICE, message_id=stored.messages[0].message_id
        )
        bodies = node.shard_of(ALICE).bodies
        whole = dict(bodies)
        del bodies[max(bodies)]
        error = await refusal(calls.blobs.GetStructure(request))
        assert isinstance(error, errors.BlobCorruptError)
        bodies.update(whole)
        assert (await calls.blobs.GetStructure(request)).root == mime.parse(raw).root


def test_the_cache_is_bounded() -> None:
    """The last used stay, up to a number of bytes."""
    cache = structure._Cache(1_000)
    for number in range(20):
        cache.put((1, number, 0), b"x" * 100)
        cache.get((1, 0, 0))
    assert cache.get((1, 0, 0))
    assert cache.get((1, 19, 0))
    assert not cache.get((1, 5, 0))
    assert len(cache._entries) == 3
    cache.put((1, 0, 0), b"y" * 2_000)
    assert cache._left_bytes >= 0
