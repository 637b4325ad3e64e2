"""SearchMessages by what only the bytes of a message tell: text of bodies, any header field."""

import pytest
from tests.unit.test_services_node import ALICE, Calls, item, pages, refusal, running
from tests.unit.test_services_search import Filter, Request, header, several, text
from tests.unit.test_services_upload import chunks, send
from tests.unit.test_services_upload import header as upload_header

from mailraft.node.mailstore import filters
from mailraft.node.services import message_text, search, search_texts, uploads
from mailraft.v1 import delivery_pb2, search_pb2
from mailraft.wire import errors

ANY, BODY, WHOLE = (
    search_pb2.TEXT_FIELD_ANY,
    search_pb2.TEXT_FIELD_BODY,
    search_pb2.TEXT_FIELD_WHOLE,
)
MULTIPART = (
    b"Subject: =?utf-8?q?M=C3=B6bel?=\r\nX-Mailer: Acme\r\n Mail 7\r\n"
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\npreamble\r\n"
    b"--b\r\nContent-Type: text/plain; charset=iso-8859-1\r\n"
    b"Content-Transfer-Encoding: quoted-printable\r\n\r\nR=FCckseite des\r\n\r\nGer=\r\n=E4ts\r\n"
    b"--b\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    b"PGI+Tm9kZTwvYj4gJmFtcDsgPGEKaHJlZj0ieCI+cGVlcjwvYT4=\r\n"
    b"--b\r\nContent-Type: application/pdf\r\n\r\nattached\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nforwarded words\r\n--b--\r\n"
)
MAILS = {
    "parts": MULTIPART,
    "plain": b"Subject: plain\r\n\r\nNothing to see",
    "seen": b"Subject: seen\r\n\r\nforwarded words",
}


FOUND = [
    (text(BODY, "rückseite DES gerät"), "parts"),  # QP, ISO 8859-1, over line ends
    (text(BODY, "node & peer"), "parts"),  # base64, without its tags
    (text(BODY, "forwarded words"), "parts seen"),
    (text(BODY, "attached"), ""),
    (text(BODY, "preamble"), ""),
    (text(BODY, "möbel"), ""),
    (text(ANY, "möbel"), "parts"),
    (text(ANY, "nothing"), "plain"),
    (text(ANY, "acme"), ""),
    (text(WHOLE, "acme mail"), "parts"),
    (text(WHOLE, "see"), "plain seen"),
    (header("x-mailer", "acme MAIL"), "parts"),
    (header("X-Mailer"), "parts"),
    (header("x-other"), ""),
    (Filter(none_of=several(text(BODY, "forwarded"))), "plain"),
    (Filter(all_of=several(Filter(has_keyword="$seen"), text(BODY, "words"))), "seen"),
    (Filter(any_of=several(Filter(has_keyword="$seen"), text(BODY, "see"))), "plain seen"),
]


async def filled(calls: Calls) -> dict[str, str]:
    """Names by id."""
    await calls.create(ALICE)
    stored = await calls.append(
        ALICE,
        *(
            item(raw, keywords=["$seen"] if name == "seen" else [], internal_time_ms=100 - number)
            for number, (name, raw) in enumerate(MAILS.items())
        ),
    )
    return {one.message_id: name for one, name in zip(stored.messages, MAILS, strict=True)}


async def test_what_the_bytes_say() -> None:
    """Text parts decoded, compared without case and without regard to how lines were broken; in
    every order, page by page.
    """
    async with running() as (_, calls):
        names = await filled(calls)
        by_size = search_pb2.SortKey(property=search_pb2.SORT_PROPERTY_SIZE, descending=True)
        for asked, expected in FOUND:
            for sort, size in (([], 1), ([], 2), ([], 100), ([by_size], 1)):
                request = Request(account_id=ALICE, filter=asked, sort=sort, page_size=size)
                told = await pages(calls.messages.SearchMessages, request)
                assert all(len(page.messages) <= size for page in told)
                found = [names[each.id] for page in told for each in page.messages]
                assert found == expected.split(), asked


async def test_a_page_reads_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many messages, so many bytes, and no longer than its call; then it ends, and its token
    goes on. Bytes are read only where nothing else decides.
    """
    async with running() as (node, calls):
        names = await filled(calls)
        opened: list[int] = []
        real = message_text.text_of

        def counted(raw: bytes) -> filters.Text:
            opened.append(len(raw))
            return real(raw)

        monkeypatch.setattr(message_text, "text_of", counted)
        both = Filter(all_of=several(Filter(has_keyword="$seen"), text(BODY, "words")))
        await calls.messages.SearchMessages(Request(account_id=ALICE, filter=both))
        assert opened == [len(MAILS["seen"])]
        forwarded = text(BODY, "forwarded")
        for limit, value in (("TEXTS_MAX", 1), ("TEXTS_MAX_BYTES", 1), ("REPLY_S", 1e9)):
            with monkeypatch.context() as patch:
                for module in (search, search_texts):
                    patch.setattr(module, limit, value, raising=False)
                request = Request(account_id=ALICE, filter=forwarded)
                told = await pages(calls.messages.SearchMessages, request)
            assert [len(page.messages) for page in told] == [1, 0, 1], limit
            assert names[told[2].messages[0].id] == "seen"
        shard = node.shard_of(ALICE)
        shard.bodies[min(shard.bodies)] = b"damaged"
        first = Request(account_id=ALICE, filter=forwarded)
        error = await refusal(calls.messages.SearchMessages(first))
        assert isinstance(error, errors.BlobCorruptError)


async def test_all_stored_parts_of_a_large_message_are_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was uploaded is searched in all of its stored parts, up to limits of bytes and text
    that bound memory and time.
    """
    attached = b"--b\r\nContent-Type: image/png\r\n\r\n"
    attached += b"".join(b"%063d\n" % number for number in range(24 * 1024))  # 1.5 MiB
    word = b"--b\r\nContent-Type: text/plain\r\n\r\nneedle%d here\r\n"
    raw = b"Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    raw += b"".join(word % number + attached for number in range(4)) + b"--b--\r\n"
    read: list[int] = []
    real = message_text.text_of

    def noted(raw: bytes) -> filters.Text:
        read.append(len(raw))
        return real(raw)

    monkeypatch.setattr(message_text, "text_of", noted)
    async with running() as (_, calls):
        await calls.create(ALICE)
        done = await send(calls, upload_header(raw), chunks(raw))
        await calls.append(ALICE, delivery_pb2.AppendItem(blob_id=done.blob_id))
        for number in range(4):
            request = Request(account_id=ALICE, filter=text(BODY, f"needle{number} here"))
            found = await calls.messages.SearchMessages(request)
            begins = raw.index(b"needle%d" % number)
            assert len(found.messages) == (begins < message_text.MESSAGE_MAX_BYTES), number
    assert raw.index(b"needle3") > message_text.MESSAGE_MAX_BYTES > 3 * uploads.PART_BYTES
    assert set(read) == {message_text.MESSAGE_MAX_BYTES}
    long = b"Subject: x\r\n\r\n" + b"%015d\n" % 7 * (message_text.TEXT_MAX_CHARS // 16) + b"end\n"
    assert len(real(long).body) == message_text.TEXT_MAX_CHARS - 1
    assert "end" in real(long.replace(b"0" * 14, b"0" * 13)).body
