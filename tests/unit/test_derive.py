import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailraft.node.services import addresses, encoded_words
from mailraft.node.services.derive import (
    DERIVED_MAX_BYTES,
    PARSER_VERSION,
    derive,
)
from mailraft.v1 import message_pb2

CORPUS = Path(os.environ.get("MAILRAFT_CORPUS", ""))


def checked(raw: bytes) -> message_pb2.Derived:
    """Derives, and holds what is promised for any bytes at all."""
    derived = derive(raw)
    assert derived.parser_version == PARSER_VERSION
    serialized = derived.SerializeToString(deterministic=True)
    assert len(serialized) <= DERIVED_MAX_BYTES
    assert "\x00" not in str(derived)
    envelope = derived.envelope
    assert len(envelope.subject.encode()) <= 2_048
    assert len(derived.references) <= 100
    for field in (
        "from_addrs",
        "sender_addrs",
        "reply_to_addrs",
        "to_addrs",
        "cc_addrs",
        "bcc_addrs",
    ):
        assert len(getattr(envelope, field)) <= 100
    return derived


# ---- what is read


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_a_header_is_read_whatever_its_line_ends(end: str) -> None:
    """Envelope, references and the attachment guess of an ordinary mail."""
    lines = [
        "Received: from a.example (a.example [192.0.2.1])",
        "\tby b.example; Mon, 1 Jan 2024 00:00:00 +0000",
        "From: =?utf-8?q?J=C3=B6rg?= <joerg@example.org>",
        "SENDER: list@example.org",
        "To: Bob <bob@example.org>,",
        "  carol@example.org",
        "Cc: dave@example.org",
        "Cc: erin@example.org",
        "Subject: Hello",
        " world",
        "Date: Mon, 1 Feb 2021 10:00:00 +0100 (CET)",
        "Message-ID: <m1@example.org>",
        "In-Reply-To: <m0@example.org>",
        "References: <a@example.org>",
        " <m0@example.org>",
        "Content-Type: multipart/mixed; boundary=x",
        "",
        "Subject: not this one",
    ]
    derived = checked(end.join(lines).encode())
    envelope = derived.envelope
    assert [(a.name, a.mailbox, a.host) for a in envelope.from_addrs] == [
        ("Jörg", "joerg", "example.org")
    ]
    assert [a.mailbox for a in envelope.sender_addrs] == ["list"]
    assert [a.mailbox for a in envelope.to_addrs] == ["bob", "carol"]
    assert [a.mailbox for a in envelope.cc_addrs] == ["dave", "erin"]
    assert envelope.subject == "Hello world"
    assert envelope.date == "Mon, 1 Feb 2021 10:00:00 +0100 (CET)"
    assert envelope.sent_time_ms == 1_612_170_000_000
    assert envelope.message_id == "m1@example.org"
    assert list(envelope.in_reply_to) == ["m0@example.org"]
    assert list(derived.references) == ["a@example.org", "m0@example.org"]
    assert derived.has_attachment
    assert not derived.truncated
    assert not derived.preview


def test_raw_utf8_and_other_bytes_are_told() -> None:
    """UTF-8 is read (RFC 6532); what is none becomes U+FFFD, NUL goes."""
    derived = checked("Subject: Grüße\n\n".encode())
    assert derived.envelope.subject == "Grüße"
    assert checked(b"Subject: caf\xe9 a\x00b\n\n").envelope.subject == "caf\ufffd ab"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=?iso-8859-1?Q?caf=E9_au?= lait", "café au lait"),
        ("=?utf-8?B?w6Q=?= =?utf-8?B?w7Y=?=", "äö"),
        ("=?utf-8?B?ww?= =?utf-8?B?pA?=", "ä"),  # padding forgotten, a character cut in two
        ("=?utf-8*de?q?a?=", "a"),
        ("=?gb2312?B?xOO6ww==?=", "你好"),
        ("=?iso-2022-jp?B?GyRCRnxLXBsoQg==?=", "日本"),
        ("=?no-such-charset?q?a?= b", "=?no-such-charset?q?a?= b"),
        ("=?utf-8?q?a=00=0Ab?=", "ab"),
        ("=?utf-8?x?a?=", "=?utf-8?x?a?="),
        ("a =?utf-8?q?b?= c", "a b c"),
        ("plain", "plain"),
    ],
)
def test_encoded_words(text: str, expected: str) -> None:
    """RFC 2047, and what mailers make of it; what cannot be decoded stays as it is."""
    assert encoded_words.decoded(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a@b.c", [("", "a", "b.c")]),
        ('"Doe, John" <j@d>', [("Doe, John", "j", "d")]),
        ('"a \\"b\\"" <j@d>', [('a "b"', "j", "d")]),
        ("j@d (John (Jr) Doe)", [("John (Jr) Doe", "j", "d")]),
        ('"odd local"@d', [("", "odd local", "d")]),
        ("Team: a@b, C <c@d>;", [("", "Team", ""), ("", "a", "b"), ("C", "c", "d"), ("", "", "")]),
        ("undisclosed-recipients:;", [("", "undisclosed-recipients", ""), ("", "", "")]),
        ("<@r1,@r2:a@b>", [("", "a", "b")]),
        ("<>", [("", "", "")]),
        ("a@b,, c@d,", [("", "a", "b"), ("", "c", "d")]),
        ("just a name", [("just a name", "", "")]),
        ("=?utf-8?q?D=2C_J?= <j@d>", [("D, J", "j", "d")]),
        ("a@[192.0.2.1]", [("", "a", "[192.0.2.1]")]),
        ("", []),
    ],
)
def test_addresses(text: str, expected: list[tuple[str, str, str]]) -> None:
    """RFC 5322 section 3.4, groups as RFC 9051 tells them."""
    assert addresses.parse(text)[0] == expected


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("1 Feb 2021 10:00 +0000", 1_612_173_600_000),
        ("Mon, 01 Feb 2021 10:00:00 GMT", 1_612_173_600_000),
        ("Mon Feb  1 10:00:00 2021", 1_612_173_600_000),
        ("Thu, 31 Dec 1959 23:00:00 -0100", -315_619_200_000),
        ("Mon, 99 Feb 2021 10:00:00 +0000", None),
        ("Mon, 1 Foo 2021 10:00:00 +0000", None),
        ("Mon, 1 Feb 2021 25:00:00 +0000", None),
        ("yesterday", None),
    ],
)
def test_dates(date: str, expected: int | None) -> None:
    """As it is written, and as a time if it can be read."""
    envelope = checked(f"Date: {date}\n\n".encode()).envelope
    assert envelope.date == date
    assert (envelope.sent_time_ms if envelope.HasField("sent_time_ms") else None) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text/plain", False),
        ("multipart/alternative; boundary=x", False),
        ("Multipart/Mixed;boundary=x", True),
        ("application/pdf", True),
        ("message/rfc822", False),
        ("nonsense", False),
    ],
)
def test_attachments_are_guessed(kind: str, expected: bool) -> None:
    """From the top Content-Type alone."""
    assert checked(f"Content-Type: {kind}\n\n".encode()).has_attachment is expected


# ---- what is malformed


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n",
        b"\r\n\r\n",
        b"no header at all",
        b"From nobody Mon Jan  1 00:00:00 2024",
        b":\n:\n\n",
        b" folded first\nSubject: x\n\n",
        b"Subject" * 20_000,
        b"Subject:" + b" x" * 100_000,
        b"To: " + b"a@b," * 50_000 + b"\n\n",
        b"To: x\n" * 20_000,
        b"References: " + b"<a@b> " * 20_000 + b"\n\n",
        b"\x00" * 100_000,
        b"Subject: =?" + b"=?a?q?" * 20_000,
        b"Date: " + b"9" * 60_000 + b"\n\n",
        b"From: " + b'"' * 60_000,
        b"From: " + b"(" * 60_000,
        b"From: " + b"a" + b" " * 60_000 + b"(",
        b"".join(
            b"%s: %s\n" % (name, b"x" * 60 + b"@y," * 5_000) for name in (b"To", b"Cc", b"Bcc")
        ),
    ],
)
def test_a_malformed_header_costs_little(raw: bytes) -> None:
    """It gives less, and never an error; however hostile, it takes milliseconds."""
    began = time.perf_counter()
    checked(raw)
    assert time.perf_counter() - began < 0.25


def test_a_mail_out_of_an_mbox_keeps_its_header() -> None:
    """The separator line in front is no end of the header."""
    assert checked(b"From a@b Mon Jan  1\nSubject: x\n\n").envelope.subject == "x"


def test_what_is_cut_is_told() -> None:
    """A header behind the limit, too many ids, too long a subject: truncated says so."""
    assert checked(b"X: y\n" * 14_000 + b"\n").truncated
    assert checked(b"References: " + b"<a@b>" * 101 + b"\n\n").truncated
    assert checked(b"Subject: " + b"x" * 3_000 + b"\n\n").truncated
    many = ",".join(f"{'n' * 200} <{'l' * 60}{n}@{'d' * 60}>" for n in range(100)).encode()
    large = checked(b"".join(b"%s: %s\n" % (name, many) for name in (b"To", b"Cc", b"Bcc")))
    assert large.truncated


FRAGMENTS = st.sampled_from(
    [
        b"\r",
        b"\n",
        b"\r\n",
        b"\n\n",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"<",
        b">",
        b"@",
        b'"',
        b"(",
        b")",
    ]
    + [
        b"\\",
        b"=?utf-8?q?",
        b"=?utf-16?B?",
        b"?=",
        b"=E4",
        b"\xff",
        b"\x00",
        b"a",
        b"1",
        b"Mon, 1 Jan",
    ]
    + [
        b"\n%s:" % name
        for name in (b"From", b"To", b"Subject", b"Date", b"References", b"Message-ID")
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(FRAGMENTS | st.binary(max_size=20), max_size=60).map(b"".join))
@example(b"Date: Mon, 1 Jan 0000 00:00:00 +9999\n")
@example(b"Date: 1 Jan 2020 00:00:00 +99999999999999999999\n")
def test_any_bytes_are_taken(raw: bytes) -> None:
    """Nothing that comes in can make it raise, and the same bytes give the same answer."""
    assert checked(raw) == checked(raw)
    assert checked(b"Subject: x\nFrom: " + raw).parser_version == PARSER_VERSION


# ---- real mail


def corpus() -> Iterator[bytes]:
    """The messages of the archives in MAILRAFT_CORPUS."""
    for archive in sorted(CORPUS.glob("*.tar.zst")):
        with (
            zstandard.open(archive, "rb") as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                found = tar.extractfile(member)
                if found is not None:
                    yield found.read()


@pytest.mark.skipif(
    not os.environ.get("MAILRAFT_CORPUS"), reason="MAILRAFT_CORPUS names no folder of mail"
)
def test_real_mail_is_read() -> None:
    """Malformed ones included; a header costs tens of microseconds."""
    costs_us = []
    named = count = 0
    for raw in corpus():
        began = time.perf_counter()
        derived = derive(raw)
        costs_us.append((time.perf_counter() - began) * 1e6)
        checked(raw)
        count += 1
        named += bool(derived.envelope.from_addrs)
    assert count > 1_000
    assert named > 0.9 * count
    median_us = sorted(costs_us)[count // 2]
    print(f"{count} mails, median {median_us:.0f} us")
    assert median_us < 300
