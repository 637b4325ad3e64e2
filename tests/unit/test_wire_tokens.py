"""Opaque strings: they come back as they went, and what is not theirs is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailraft.wire import errors, tokens
from mailraft.wire.metadata import decode_account, encode_account

UINT64 = st.integers(0, 2**64 - 1)
JMAP_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")  # RFC 8620 section 1.2


@given(UINT64, UINT64, UINT64, UINT64)
def test_a_state_comes_back(epoch: int, created: int, modseq: int, position: int) -> None:
    """And is safe in a URL."""
    state = tokens.State(epoch, created, modseq, position)
    token = tokens.encode_state(state)
    assert tokens.decode_state(token) == state
    assert JMAP_ID.fullmatch(token)


def test_states_are_ordered_and_short() -> None:
    """A later incarnation is above every state of an earlier one."""
    assert tokens.State(0, 5, 900) < tokens.State(0, 6, 1) < tokens.State(1, 2, 1)
    assert len(tokens.encode_state(tokens.State(0, 70_000, 1_000_000))) <= 16


@pytest.mark.parametrize(
    "text", ["", "1", "x", "1AAAA", "2AAECAwQ", "1AA=A", "1é", "1" + "A" * 5000]
)
def test_what_is_no_state_is_refused(text: str) -> None:
    """ValueError, whatever it is."""
    with pytest.raises(ValueError, match="not a state"):
        tokens.decode_state(text)


def test_a_changed_state_is_refused() -> None:
    """A character that was lost or changed is noticed."""
    token = tokens.encode_state(tokens.State(1, 70_000, 123_456, 2))
    for at in range(1, len(token)):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        with pytest.raises(ValueError, match="not a state"):
            tokens.decode_state(changed)


IDS = [
    (tokens.mailbox_id, tokens.parse_mailbox_id, "F"),
    (tokens.message_id, tokens.parse_message_id, "M"),
    (tokens.thread_id, tokens.parse_thread_id, "T"),
]


@pytest.mark.parametrize(("make", "parse", "letter"), IDS, ids="FMT")
@given(number=UINT64)
def test_an_id_comes_back(
    make: Callable[[int], str], parse: Callable[[str], int], letter: str, number: int
) -> None:
    """Each kind has its letter, and all are JMAP ids."""
    text = make(number)
    assert parse(text) == number
    assert text.startswith(letter)
    assert JMAP_ID.fullmatch(text)


@pytest.mark.parametrize(("make", "parse", "letter"), IDS, ids="FMT")
def test_what_is_no_id_is_refused(
    make: Callable[[int], str], parse: Callable[[str], int], letter: str
) -> None:
    """One spelling each: an id is never equal to another one in other letters."""
    bad = [
        "",
        letter,
        "X1",
        f"{letter}-1",
        f"{letter}01",
        f"{letter}A",
        f"{letter} 1",
        f"{letter}w",
    ]
    for text in [*bad, f"{letter}é", f"{letter}{'v' * 13}", f"{letter}{'1' * 14}", "B1-0"]:
        with pytest.raises(ValueError, match="id"):
            parse(text)
    with pytest.raises(ValueError, match="64-bit"):
        make(-1)


@given(UINT64, UINT64)
def test_a_blob_id_comes_back(index: int, ordinal: int) -> None:
    """It names a log entry and a body in it."""
    text = tokens.blob_id(index, ordinal)
    assert tokens.parse_blob_id(text) == (index, ordinal)
    assert JMAP_ID.fullmatch(text)


@pytest.mark.parametrize("text", ["", "B", "B1", "B1-", "B-1", "B1-01", "M1-0", "B1-0-0", "b1-0"])
def test_what_is_no_blob_id_is_refused(text: str) -> None:
    """ValueError."""
    with pytest.raises(ValueError, match="blob id"):
        tokens.parse_blob_id(text)


@given(st.lists(st.one_of(st.text(), st.integers())), st.binary(max_size=64))
def test_a_page_token_opens_for_its_own_request(request: list[str | int], place: bytes) -> None:
    """And for no other."""
    token = tokens.page_token(request, place)
    assert JMAP_ID.fullmatch(token)
    assert tokens.open_page_token(token, request) == place
    for other in ([*request, 1], [*request, ""]):
        with pytest.raises(errors.BadPageTokenError, match="another request"):
            tokens.open_page_token(token, other)


def test_parameters_do_not_run_together() -> None:
    """("ab", "c") is not ("a", "bc"), and 1 is not "1"."""
    token = tokens.page_token(["ab", "c", 1], b"")
    others: list[list[str | int]] = [["a", "bc", 1], ["ab", "c", "1"], ["abc", 1]]
    for other in others:
        with pytest.raises(errors.BadPageTokenError):
            tokens.open_page_token(token, other)


@pytest.mark.parametrize("text", ["", "1", "x", "1AAAA", "1" + "A" * 20, "1" + "A" * 2000])
def test_what_is_no_page_token_is_refused(text: str) -> None:
    """BAD_PAGE_TOKEN."""
    with pytest.raises(errors.BadPageTokenError):
        tokens.open_page_token(text, [])


@given(st.text(min_size=1))
def test_an_account_survives_metadata(account_id: str) -> None:
    """Percent-encoded to printable ASCII without spaces."""
    value = encode_account(account_id)
    assert re.fullmatch(r"[!-~]+", value)
    assert decode_account(value) == account_id


def test_plain_accounts_are_readable_in_metadata() -> None:
    """An address stays as it is."""
    assert encode_account("alice+x@example.org") == "alice+x@example.org"
    assert encode_account("50%") == "50%25"
    with pytest.raises(ValueError, match="utf-8"):
        decode_account("%ff")
