"""SearchMessages by threads: what a page reads of them, and threads collapsed to their first."""

import pytest
from tests.unit.test_services_node import ALICE, Calls, item, pages, refusal, request_id, running
from tests.unit.test_services_search import DAY_MS, INBOX, Filter, Request, several, text

from mailraft.node.mailstore import search, thread_queries
from mailraft.node.services import search_texts
from mailraft.v1 import mailbox_pb2, message_pb2, search_pb2
from mailraft.wire import errors

BODY = search_pb2.TEXT_FIELD_BODY
BY_SIZE = search_pb2.SortKey(property=search_pb2.SORT_PROPERTY_SIZE, descending=True)
BY_UID = search_pb2.SortKey(property=search_pb2.SORT_PROPERTY_UID)
# Threads a, b and c: name, day received, keywords, body, also in the other mailbox?
MAILS: tuple[tuple[str, int, list[str], str, bool], ...] = (
    ("a0", 9, ["$seen"], "apple", False),
    ("b0", 8, [], "pear apple", False),
    ("a1", 7, [], "pear", True),
    ("b1", 6, ["$seen"], "apple pie", True),
    ("a2", 5, ["$seen"], "apple tart", True),
    ("c0", 4, [], "plum", False),
)


async def filled(calls: Calls) -> tuple[dict[str, str], str, str]:
    """Names by id, the INBOX, which all are in, and another mailbox."""
    await calls.create(ALICE)
    made = await calls.mailboxes.CreateMailbox(
        mailbox_pb2.CreateMailboxRequest(
            account_id=ALICE, request_id=request_id(), mailbox=mailbox_pb2.Mailbox(name="Other")
        )
    )
    inbox, other = message_pb2.MailboxTarget(role=INBOX), made.mailbox.id
    names = {}
    for name, day, keywords, body, also in MAILS:
        targets = [inbox, *([message_pb2.MailboxTarget(mailbox_id=other)] if also else [])]
        refers = "" if name.endswith("0") else f"References: <{name[0]}0@x>\r\n"
        raw = f"Subject: {name[0]}\r\nMessage-ID: <{name}@x>\r\n{refers}\r\n{body}".encode()
        stored = await calls.append(
            ALICE, item(raw, internal_time_ms=day * DAY_MS, keywords=keywords, targets=targets)
        )
        names[stored.messages[0].message_id] = name
    role = mailbox_pb2.GetMailboxRequest(account_id=ALICE, mailbox_role=INBOX)
    return names, (await calls.mailboxes.GetMailbox(role)).mailbox.id, other


async def found(
    calls: Calls, names: dict[str, str], request: Request
) -> tuple[str, list[search_pb2.SearchMessagesResponse]]:
    """The names of what is shown, and the pages."""
    told = await pages(calls.messages.SearchMessages, request)
    return " ".join(names[each.id] for page in told for each in page.messages), told


async def test_a_page_reads_so_much_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that read enough of other threads leaves the next thread to the next page."""
    monkeypatch.setattr(search, "EXAMINED_MAX", 2)
    async with running() as (_, calls):
        names, inbox, _ = await filled(calls)
        asked = Filter(some_in_thread_have_keyword="$seen")
        for collapsed, shown in ((False, "a0 b0 a1 b1 a2"), (True, "a0 b0")):
            request = Request(
                account_id=ALICE, mailbox_id=inbox, filter=asked, collapse_threads=collapsed
            )
            told, told_pages = await found(calls, names, request)
            assert told == shown
            # Two messages by their rows, and threads until two of theirs were read: a has three.
            assert max(page.examined_messages for page in told_pages) == 1 + 3
            assert len(told_pages) > len(MAILS) // 2


@pytest.mark.parametrize("page_size", [0, 1])
async def test_a_thread_shows_its_first_match(page_size: int) -> None:
    """Of each thread the first that matches, in every order and mailbox, and where a text decides;
    page by page as at once (RFC 8621 section 4.4.3).
    """
    unseen, seen = Filter(not_keyword="$seen"), Filter(has_keyword="$seen")
    apple, tart = text(BODY, "apple"), text(BODY, "tart")
    oldest = search_pb2.SortKey()
    async with running() as (_, calls):
        names, inbox, other = await filled(calls)
        for asked, mailbox_id, sort, expected in (
            (None, "", [], "a0 b0 c0"),
            (None, inbox, [oldest], "c0 a2 b1"),
            (None, other, [], "a1 b1"),
            (None, other, [BY_UID], "a1 b1"),
            (None, inbox, [BY_SIZE], "a2 b1 c0"),
            (unseen, "", [], "b0 a1 c0"),
            (unseen, inbox, [oldest], "c0 a1 b0"),
            (seen, other, [], "b1 a2"),
            (apple, "", [], "a0 b0"),
            (apple, inbox, [oldest], "a2 b1"),
            (apple, other, [], "b1 a2"),
            (tart, "", [], "a2"),
            (apple, inbox, [BY_SIZE], "a2 b1"),
            (Filter(any_of=several(unseen, apple)), "", [], "a0 b0 c0"),
            (Filter(any_of=several(unseen, tart)), "", [oldest], "c0 a2 b0"),
            (Filter(all_of=several(seen, apple)), "", [], "a0 b1"),
            (Filter(none_of=several(apple)), inbox, [], "a1 c0"),
        ):
            request = Request(
                account_id=ALICE,
                mailbox_id=mailbox_id,
                filter=asked,
                sort=sort,
                page_size=page_size,
                collapse_threads=True,
            )
            told, _ = await found(calls, names, request)
            assert told == expected, (asked, mailbox_id, sort)


async def test_collapsing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above what one page may read to know whether a match shows, the search is refused. A token
    is of a search that collapses, or of one that does not.
    """
    async with running() as (_, calls):
        names, _, _ = await filled(calls)
        apple, tart = text(BODY, "apple"), text(BODY, "tart")
        request = Request(account_id=ALICE, filter=apple, collapse_threads=True)
        with monkeypatch.context() as patch:
            # Before a2 come a0, which matches apple, and a1, which has to be read for tart.
            patch.setattr(search_texts, "TEXTS_MAX", 1)
            assert (await found(calls, names, request))[0] == "a0 b0"
            request = Request(account_id=ALICE, filter=tart, collapse_threads=True)
            error = await refusal(pages(calls.messages.SearchMessages, request))
            assert isinstance(error, errors.FilterUnsupportedError)
        assert (await found(calls, names, request))[0] == "a2"
        with monkeypatch.context() as patch:
            patch.setattr(thread_queries, "READ_MAX", 2)
            error = await refusal(calls.messages.SearchMessages(request))
            assert isinstance(error, errors.FilterUnsupportedError)
        request = Request(account_id=ALICE, page_size=1, collapse_threads=True)
        first = await calls.messages.SearchMessages(request)
        other = Request(account_id=ALICE, page_size=1, page_token=first.next_page_token)
        error = await refusal(calls.messages.SearchMessages(other))
        assert isinstance(error, errors.BadPageTokenError)
