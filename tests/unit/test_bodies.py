"""Bodies as they are stored: what was packed once can be opened for ever."""

import hashlib

import pytest

from mailraft.wire import bodies

MAIL = b"From: a@example.org\r\nTo: b@example.org\r\nMIME-Version: 1.0\r\n\r\nHello,\r\n" * 3
DICTIONARIES = (bodies.NO_DICTIONARY, bodies.MAIL_DICTIONARY)


def test_the_mail_dictionary_never_changes() -> None:
    """Every body that was stored with it needs these very bytes. A better one has another number
    and a file of its own.
    """
    assert hashlib.sha256(bodies.mail_dictionary()).hexdigest() == (
        "8e431a533f9268683313de3368920b8c70e4e9f0c924c6519b12de583c855e93"
    )
    packed = bytes.fromhex(
        "0102000068f5b2c728b52ffd20cf1501005061406578616d706c65620700072450e0d5db406512b091b77b18f2f8ecb9060304"
    )
    assert bodies.unpack(packed, len(MAIL)) == MAIL


@pytest.mark.parametrize("dictionary", DICTIONARIES)
@pytest.mark.parametrize("raw", [b"x", MAIL, bytes(range(256)), MAIL * 1_000])
def test_packed_bodies_open_to_what_was_packed(raw: bytes, dictionary: int) -> None:
    """Whatever they were packed with, which they say themselves."""
    packed = bodies.pack(raw, dictionary)
    assert bodies.unpack(packed, len(raw)) == raw
    assert bodies.unpack(bodies.pack_zstd(bodies.compress(raw, dictionary), dictionary), len(raw))
    bodies.check(packed)


def test_the_dictionary_pays_for_small_mail() -> None:
    """That is what it is there for. Large bodies do without."""
    plain, small = (len(bodies.pack(MAIL, dictionary)) for dictionary in DICTIONARIES)
    assert small < 0.7 * plain
    assert bodies.suited(1, bodies.MAIL_DICTIONARY_BYTES_MAX) == bodies.MAIL_DICTIONARY
    assert bodies.suited(1, bodies.MAIL_DICTIONARY_BYTES_MAX + 1) == bodies.NO_DICTIONARY
    assert bodies.suited(0, 10) == bodies.NO_DICTIONARY


def test_a_reader_gets_no_frame_that_it_cannot_open() -> None:
    """Without the dictionary it is sent the bytes themselves."""
    packed = bodies.pack(MAIL, bodies.MAIL_DICTIONARY)
    assert bodies.zstd_payload(packed) is None
    assert bodies.zstd_payload(packed, 1) == (packed[bodies.HEADER_BYTES :], 1)
    assert bodies.zstd_payload(bodies.pack(b"x"), 1) is None


def test_what_is_not_known_here_is_refused() -> None:
    """A codec or a dictionary of a later version is never opened as something else."""
    packed = bodies.pack(MAIL, bodies.MAIL_DICTIONARY)
    later = bytes((packed[0], 3)) + packed[2:]
    for wrong in (later, packed[:-1], packed[:5]):
        with pytest.raises(bodies.BodyCorruptError):
            bodies.unpack(wrong, len(MAIL))
    frame = packed[bodies.HEADER_BYTES :]
    with pytest.raises(bodies.BodyCorruptError, match="dictionary 2"):
        bodies.open_zstd(frame, len(MAIL), 2)
    with pytest.raises(bodies.BodyCorruptError):
        bodies.open_zstd(frame, len(MAIL) + 1, bodies.MAIL_DICTIONARY)
