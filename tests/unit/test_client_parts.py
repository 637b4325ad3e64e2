"""What the client is made of: request ids, sessions, contents, receipts."""

import hashlib
import uuid
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import pytest

from mailraft.client import IntegrityError, Session, calls
from mailraft.client.content import Download, Packing, decode, encode
from mailraft.client.ids import RequestIds
from mailraft.v1 import blob_pb2, common_pb2
from mailraft.wire import bodies, tokens


def state(modseq: int, incarnation: int = 1) -> str:
    """A state as the server makes it."""
    return tokens.encode_state(tokens.State(1, incarnation, modseq))


def test_request_ids_are_rising_uuid7s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 7 of this moment, and above all before, also when the clock goes back."""
    ids = RequestIds()
    now_ns = 1_700_000_000_000 * 1_000_000
    made = []
    for step_ms in (0, 0, 1, -5000, 2):
        monkeypatch.setattr("time.time_ns", lambda at=now_ns + step_ms * 1_000_000: at)
        made += [ids.next() for _ in range(100)]
    assert made == sorted(set(made))
    first = uuid.UUID(bytes=made[0])
    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    assert first.int >> 80 == 1_700_000_000_000


def test_request_ids_of_threads_differ() -> None:
    """No two threads get the same id."""
    ids = RequestIds()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: ids.next(), range(2000)))
    assert len(set(made)) == 2000


def test_a_session_remembers_the_highest_state() -> None:
    """A reply that comes late lowers nothing; a new incarnation is above an earlier one."""
    session = Session()
    for seen in (state(5), state(300), state(7), ""):
        session.observe("alice", seen)
    assert session.state_of("alice") == state(300)
    session.observe("alice", state(1, incarnation=2))
    assert session.state_of("alice") == state(1, incarnation=2)
    session.forget("alice")
    assert session.state_of("alice") == ""


def test_a_session_knows_what_it_deleted() -> None:
    """A replica that is behind would still show the account: reads of it ask a quorum, until a
    reply tells of an account of that name again. A token carries states only.
    """
    session = Session()
    session.observe("alice", state(5))
    session.deleted("alice")
    asked = calls.read_options("alice", session, {}, {})
    assert asked.consistency == common_pb2.CONSISTENCY_LINEARIZABLE
    assert not asked.min_state
    at_bob = calls.read_options("bob", session, {}, {})
    assert at_bob.consistency == common_pb2.CONSISTENCY_SESSION
    assert not Session.from_token(session.token).is_gone("alice")
    session.observe("alice", state(1, incarnation=2))
    again = calls.read_options("alice", session, {}, {})
    assert again.consistency == common_pb2.CONSISTENCY_SESSION
    assert again.min_state == state(1, incarnation=2)


def test_a_session_forgets_the_longest_unused() -> None:
    """It is bounded; use keeps an account in it."""
    session = Session(accounts_max=2)
    session.observe("alice", state(1))
    session.observe("bob", state(2))
    assert session.state_of("alice")
    session.observe("carol", state(3))
    known = [name for name in ("alice", "bob", "carol") if session.state_of(name)]
    assert known == ["alice", "carol"]


def test_a_session_travels_as_a_string() -> None:
    """Its token makes an equal session; another string is refused."""
    session = Session()
    session.observe("ålice@example.org", state(9))
    session.observe("bob", "state-of-a-newer-server")
    assert Session.from_token(session.token).token == session.token
    for bad in ("", "1", "2" + session.token[1:], session.token[:-7], "1bnVsbA=="):
        with pytest.raises(ValueError, match="session"):
            Session.from_token(bad)


def test_states_of_a_newer_server_are_taken_as_they_come() -> None:
    """What cannot be compared counts as later."""
    session = Session()
    for seen in (state(9), "9new", "9newer"):
        session.observe("alice", seen)
    assert session.state_of("alice") == "9newer"


def test_contents_are_verified() -> None:
    """A frame that opens to other bytes, or to more than it declares, is refused."""
    raw = b"mail " * 100
    content = encode(raw, Packing(compress=True))
    assert decode(content) == raw
    content.zstd.sha256 = hashlib.sha256(b"else").digest()
    with pytest.raises(IntegrityError, match="SHA-256"):
        decode(content)
    content.zstd.size_bytes -= 1
    with pytest.raises(IntegrityError, match="bytes"):
        decode(content)
    content.zstd.size_bytes = 1 << 40
    with pytest.raises(IntegrityError):
        decode(content)


def test_the_dictionary_is_used_once_every_server_has_it() -> None:
    """By the feature level of the map; frames say what they were made with, and it is checked."""
    raw = b"Content-Type: text/plain; charset=us-ascii\r\nMIME-Version: 1.0\r\n\r\n"
    before, after = bodies.dictionary_at(1), bodies.dictionary_at(2)
    assert bodies.dictionary_at(0) == before
    plain, small = encode(raw, Packing(True, before)), encode(raw, Packing(True, after))
    assert (plain.zstd.dictionary, small.zstd.dictionary) == (0, bodies.MAIL_DICTIONARY)
    assert 2 * len(small.zstd.data) < len(plain.zstd.data or raw)
    assert decode(small) == decode(plain) == raw
    small.zstd.dictionary += 1  # of a newer version
    with pytest.raises(IntegrityError, match="dictionary 2"):
        decode(small)
    assert not encode(raw + b"x" * 100_000, Packing(True, after)).zstd.dictionary


def chunk(data: bytes, crc32c: int | None = None) -> blob_pb2.DownloadBlobResponse:
    """A part of a download, with its checksum or another."""
    checksum = google_crc32c.value(data) if crc32c is None else crc32c
    return blob_pb2.DownloadBlobResponse(chunk=blob_pb2.BlobChunk(data=data, crc32c=checksum))


def header(raw: bytes, blob_id: str = "B1-0") -> blob_pb2.DownloadBlobResponse:
    """The first part of a download."""
    told = blob_pb2.DownloadHeader(
        blob_id=blob_id, size_bytes=len(raw), sha256=hashlib.sha256(raw).digest()
    )
    return blob_pb2.DownloadBlobResponse(header=told)


def test_a_download_is_verified_chunk_by_chunk_and_as_a_whole() -> None:
    """A damaged chunk, a missing end, other bytes and another blob are all found."""
    asked = blob_pb2.DownloadBlobRequest()
    download = Download(asked)
    assert [download.feed(part) for part in (header(b"abcd"), chunk(b"ab"))] == [b"", b"ab"]
    assert (download.complete, download.request().offset_bytes) == (False, 2)
    with pytest.raises(IntegrityError, match="2 bytes came instead of 4"):
        download.finish()
    with pytest.raises(IntegrityError, match="CRC-32C"):
        download.feed(chunk(b"cd", crc32c=1))
    with pytest.raises(IntegrityError, match="another blob"):
        download.feed(header(b"abcd", blob_id="B2-0"))
    download.feed(chunk(b"xy"))
    assert download.complete
    with pytest.raises(IntegrityError, match="SHA-256"):
        download.finish()
    with pytest.raises(IntegrityError, match="no header"):
        Download(asked).finish()
