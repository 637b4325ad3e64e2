import pytest
from tests.unit.test_services_node import ALICE, Calls, item, pages, refusal, request_id, running

from mailraft.node.mailstore import filters, search, thread_queries
from mailraft.v1 import (
    change_pb2,
    common_pb2,
    mailbox_pb2,
    message_pb2,
    message_service_pb2,
    search_pb2,
)
from mailraft.wire import errors, tokens

Filter = search_pb2.MessageFilter
Request = search_pb2.SearchMessagesRequest
INBOX = common_pb2.MAILBOX_ROLE_INBOX
DAY_MS = 24 * 3600 * 1000


def mail(number: int, subject: str, sender: str = "Ann <ann@example.org>", **more: str) -> bytes:
    """A mail whose Date is `number` days after 2025-06-01."""
    fields = {"From": sender, "To": "bob@example.org", "Subject": subject, **more}
    fields["Date"] = f"Sun, {number + 1:02d} Jun 2025 12:00:00 +0000"
    header = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return header.encode() + b"\r\n" + b"x" * (100 * number)


MAILS = {
    # name: (mail, received day, keywords)
    "lunch": (mail(1, "Lunch on Friday"), 9, ["$seen"]),
    "reply": (mail(2, "Re: [list] lunch on friday", "Zoe <zoe@example.org>"), 8, []),
    "invoice": (mail(3, "Rechnung für Möbel", "<billing@shop.test>"), 7, ["$seen", "$flagged"]),
    "photos": (
        mail(4, "photos", **{"Content-Type": "multipart/mixed; boundary=x"}),
        6,
        ["$flagged"],
    ),
    "lists": (mail(5, "weekly", "list <list@example.org>", Cc="carol@example.org"), 5, []),
}


async def filled(calls: Calls) -> tuple[dict[str, str], str, str]:
    """Names by id; the ids of the INBOX and of another mailbox, which "lists" is in, too."""
    await calls.create(ALICE)
    made = await calls.mailboxes.CreateMailbox(
        mailbox_pb2.CreateMailboxRequest(
            account_id=ALICE, request_id=request_id(), mailbox=mailbox_pb2.Mailbox(name="Lists")
        )
    )
    other = made.mailbox.id
    names = {}
    for name, (raw, day, keywords) in MAILS.items():
        targets = [message_pb2.MailboxTarget(role=INBOX)]
        if name == "lists":
            targets.append(message_pb2.MailboxTarget(mailbox_id=other))
        stored = await calls.append(
            ALICE,
            item(raw, internal_time_ms=day * DAY_MS, keywords=keywords, targets=targets),
        )
        names[stored.messages[0].message_id] = name
    listed = await calls.mailboxes.GetMailbox(
        mailbox_pb2.GetMailboxRequest(account_id=ALICE, mailbox_role=INBOX)
    )
    return names, listed.mailbox.id, other


def text(field: int, value: str) -> Filter:
    """A condition on decoded text."""
    return Filter(text=search_pb2.TextMatch(field=field, value=value))  # type: ignore[arg-type]


def header(name: str, value: str = "") -> Filter:
    """A condition on a header field."""
    return Filter(header=search_pb2.HeaderMatch(name=name, value=value))


def several(*asked: Filter) -> search_pb2.FilterList:
    """A list of conditions."""
    return search_pb2.FilterList(filters=asked)


FLAGGED, SEEN = Filter(has_keyword="$Flagged"), Filter(has_keyword="$seen")
CASES: list[tuple[Filter, str]] = [
    (SEEN, "lunch invoice"),
    (Filter(not_keyword="$SEEN"), "reply photos lists"),
    (Filter(all_of=several(SEEN, FLAGGED)), "invoice"),
    (Filter(any_of=several(SEEN, FLAGGED)), "lunch invoice photos"),
    (Filter(none_of=several(SEEN, FLAGGED)), "reply lists"),
    (Filter(size_min_bytes=len(MAILS["photos"][0])), "photos lists"),
    (Filter(size_below_bytes=len(MAILS["reply"][0])), "lunch"),
    (Filter(received=search_pb2.TimeRange(from_ms=8 * DAY_MS)), "lunch reply"),
    (Filter(received=search_pb2.TimeRange(below_ms=6 * DAY_MS)), "lists"),
    (Filter(saved=search_pb2.TimeRange(from_ms=1)), "lunch reply invoice photos lists"),
    (
        Filter(sent=search_pb2.TimeRange(from_ms=1_748_952_000_000, below_ms=1_749_038_400_000)),
        "reply",
    ),
    (Filter(has_attachment=True), "photos"),
    (Filter(deleted=True), ""),
    (header("subject", "LUNCH on"), "lunch reply"),
    (header("Subject", "FUR MOBEL".replace("U", "Ü", 1).replace("O", "Ö", 1)), "invoice"),
    (header("cc"), "lists"),
    (header("in-reply-to"), ""),
    (text(search_pb2.TEXT_FIELD_FROM, "ZOE <zoe@"), "reply"),
    (text(search_pb2.TEXT_FIELD_CC, "carol@"), "lists"),
    (text(search_pb2.TEXT_FIELD_TO, "bob"), "lunch reply invoice photos lists"),
    (Filter(modseq_min=1 << 40), ""),
]


async def found(calls: Calls, request: Request, names: dict[str, str]) -> list[str]:
    """The names of all that is found, in order."""
    told = await pages(calls.messages.SearchMessages, request)
    return [names[each.id] for page in told for each in page.messages]


@pytest.mark.parametrize("page_size", [0, 1])
async def test_every_condition(page_size: int) -> None:
    """Each finds what it says and nothing else, newest first, in pages of any size."""
    async with running() as (_, calls):
        names, inbox, other = await filled(calls)
        ids = {name: each for each, name in names.items()}
        message = message_service_pb2.GetMessageRequest(account_id=ALICE, message_id=ids["lists"])
        lists = (await calls.messages.GetMessage(message)).message
        uid_set = common_pb2.UidSet(
            mailbox_id=inbox, uid_validity=lists.memberships[0].uid_validity, ranges=[1, 2, 5, 5]
        )
        more = [
            (Filter(in_mailbox_id=other), "lists"),
            (Filter(in_mailbox_id=inbox), " ".join(MAILS)),
            (Filter(in_other_than=search_pb2.MailboxIds(ids=[inbox])), "lists"),
            (Filter(thread_id=lists.thread_id), "lists"),
            (Filter(modseq_min=lists.modseq), "lists"),
            (Filter(uid_set=uid_set), "lunch reply lists"),
            (Filter(ids=common_pb2.MessageIds(ids=[ids["photos"], "Mzz", "no"])), "photos"),
        ]
        for asked, expected in CASES + more:
            for mailbox_id in ("", inbox):
                request = Request(
                    account_id=ALICE, mailbox_id=mailbox_id, filter=asked, page_size=page_size
                )
                assert await found(calls, request, names) == expected.split(), asked


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        (["received"], "lists photos invoice reply lunch"),
        (["-received"], "lunch reply invoice photos lists"),
        (["sent"], "lunch reply invoice photos lists"),
        (["-sent"], "lists photos invoice reply lunch"),
        (["size"], "lunch reply invoice photos lists"),
        (["subject", "-received"], "lunch reply photos invoice lists"),
        (["subject", "received"], "reply lunch photos invoice lists"),
        (["-from", "sent"], "reply lists invoice lunch photos"),
        (["to", "-size"], "lists photos invoice reply lunch"),
    ],
)
async def test_every_order(sort: list[str], expected: str) -> None:
    """By any property, either way, several after each other, page by page while mail arrives."""
    keys = [
        search_pb2.SortKey(
            property=search_pb2.SortProperty.Value(
                {"received": "SORT_PROPERTY_RECEIVED_TIME", "sent": "SORT_PROPERTY_SENT_TIME"}.get(
                    each.lstrip("-"), f"SORT_PROPERTY_{each.lstrip('-').upper()}"
                )
            ),
            descending=each.startswith("-"),
        )
        for each in sort
    ]
    async with running() as (_, calls):
        names, inbox, _ = await filled(calls)
        for mailbox_id in ("", inbox):
            request = Request(account_id=ALICE, mailbox_id=mailbox_id, sort=keys, page_size=2)
            told = []
            while True:
                page = await calls.messages.SearchMessages(request)
                told += [names[each.id] for each in page.messages if each.id in names]
                await calls.append(ALICE, item(mail(6, "new"), internal_time_ms=3 * DAY_MS))
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
            assert told == expected.split()


@pytest.mark.parametrize("descending", [True, False])
async def test_mail_of_one_moment_in_many_mailboxes(descending: bool) -> None:
    """A page that ends among messages of the same time goes on with the next of them."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        ids = []
        for number in range(4):
            made = await calls.mailboxes.CreateMailbox(
                mailbox_pb2.CreateMailboxRequest(
                    account_id=ALICE,
                    request_id=request_id(),
                    mailbox=mailbox_pb2.Mailbox(name=f"box{number}"),
                )
            )
            target = message_pb2.MailboxTarget(mailbox_id=made.mailbox.id)
            items = [item(mail(1, "x"), internal_time_ms=7, targets=[target]) for _ in range(2)]
            stored = await calls.append(ALICE, *items)
            ids += [each.message_id for each in stored.messages]
        key = search_pb2.SortKey(descending=descending)
        request = Request(account_id=ALICE, sort=[key], page_size=1)
        told = await pages(calls.messages.SearchMessages, request)
        found = [each.id for page in told for each in page.messages]
        assert found == (ids[::-1] if descending else ids)


async def test_by_uid_in_a_mailbox() -> None:
    """The order of a mailbox' UIDs; without a mailbox there is none."""
    async with running() as (_, calls):
        names, inbox, _ = await filled(calls)
        key = search_pb2.SortKey(property=search_pb2.SORT_PROPERTY_UID, descending=True)
        request = Request(account_id=ALICE, mailbox_id=inbox, sort=[key], page_size=2)
        assert await found(calls, request, names) == list(MAILS)[::-1]
        for sort in ([key], [search_pb2.SortKey(), key]):
            everywhere = Request(account_id=ALICE, sort=sort)
            error = await refusal(calls.messages.SearchMessages(everywhere))
            assert isinstance(error, errors.FilterUnsupportedError)


async def test_a_page_has_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that looked at enough ends, empty if need be, with a token that goes on."""
    monkeypatch.setattr(search, "EXAMINED_MAX", 2)
    async with running() as (_, calls):
        names, _, _ = await filled(calls)
        request = Request(account_id=ALICE, filter=text(search_pb2.TEXT_FIELD_SUBJECT, "weekly"))
        told = await pages(calls.messages.SearchMessages, request)
        assert [len(page.messages) for page in told] == [0, 0, 1]
        assert all(page.examined_messages <= 2 for page in told)
        assert names[told[-1].messages[0].id] == "lists"
        monkeypatch.setattr(search, "SORTED_MAX", 4)
        by_size = search_pb2.SortKey(property=search_pb2.SORT_PROPERTY_SIZE)
        error = await refusal(
            calls.messages.SearchMessages(Request(account_id=ALICE, sort=[by_size]))
        )
        assert isinstance(error, errors.FilterUnsupportedError)


async def test_a_listing_with_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """ListMessages shows only what matches, in every order and from any start."""
    monkeypatch.setattr(search, "EXAMINED_MAX", 2)
    async with running() as (_, calls):
        names, _, _ = await filled(calls)
        listing = message_service_pb2.ListMessagesRequest
        for order, expected in (
            (message_pb2.MESSAGE_ORDER_UID_ASC, "reply photos lists"),
            (message_pb2.MESSAGE_ORDER_UID_DESC, "lists photos reply"),
            (message_pb2.MESSAGE_ORDER_RECEIVED_ASC, "lists photos reply"),
            (message_pb2.MESSAGE_ORDER_RECEIVED_DESC, "reply photos lists"),
        ):
            request = listing(
                account_id=ALICE,
                mailbox_role=INBOX,
                order=order,
                page_size=1,
                filter=Filter(not_keyword="$seen"),
            )
            told = await pages(calls.messages.ListMessages, request)
            assert [names[each.id] for page in told for each in page.messages] == expected.split()
            assert all(page.total_messages == len(MAILS) for page in told)
        started = listing(
            account_id=ALICE, mailbox_role=INBOX, start_uid=3, filter=Filter(not_keyword="$seen")
        )
        monkeypatch.setattr(search, "EXAMINED_MAX", 9)
        page = await calls.messages.ListMessages(started)
        assert [names[each.id] for each in page.messages] == ["photos", "lists"]


def nested(levels: int) -> Filter:
    """A tree of that many levels."""
    asked = Filter(size_min_bytes=1)
    for _ in range(levels - 1):
        asked = Filter(all_of=several(asked))
    return asked


async def test_searches_that_are_refused() -> None:
    """Each with its own reason: a condition is answered or refused, never ignored."""
    async with running() as (_, calls):
        _, inbox, _ = await filled(calls)
        first = await calls.messages.SearchMessages(Request(account_id=ALICE, page_size=1))
        uids = common_pb2.UidSet(mailbox_id=inbox, uid_validity=1, ranges=[1, 1])
        for fields, kind in (
            ({"filter": text(99, "x")}, errors.BadFieldError),
            ({"filter": text(search_pb2.TEXT_FIELD_BODY, "")}, errors.BadFieldError),
            ({"filter": Filter()}, errors.BadFieldError),
            ({"filter": Filter(any_of=several())}, errors.BadFieldError),
            ({"filter": Filter(any_of=several(Filter()))}, errors.BadFieldError),
            ({"filter": text(search_pb2.TEXT_FIELD_FROM, "")}, errors.BadFieldError),
            ({"filter": header("")}, errors.BadFieldError),
            ({"filter": nested(filters.LEVELS_MAX + 1)}, errors.BadFieldError),
            (
                {"filter": Filter(any_of=several(*[SEEN] * filters.NODES_MAX))},
                errors.BadFieldError,
            ),
            ({"filter": Filter(has_keyword="k" * filters.FILTER_MAX_BYTES)}, errors.BadFieldError),
            ({"filter": Filter(in_mailbox_id="Fzz")}, errors.MailboxNotFoundError),
            ({"filter": Filter(uid_set=uids)}, errors.UidValidityMismatchError),
            ({"mailbox_id": "Fzz"}, errors.MailboxNotFoundError),
            ({"sort": [search_pb2.SortKey(property=99)]}, errors.BadFieldError),  # type: ignore[arg-type]
            ({"sort": [search_pb2.SortKey()] * 5}, errors.BadFieldError),
            ({"page_token": first.next_page_token, "mailbox_id": inbox}, errors.BadPageTokenError),
            ({"page_token": "1abc"}, errors.BadPageTokenError),
        ):
            request = Request(account_id=ALICE, **fields)
            error = await refusal(calls.messages.SearchMessages(request))
            assert isinstance(error, kind), (fields, error)
        deep = Request(account_id=ALICE, filter=nested(filters.LEVELS_MAX))
        assert len((await calls.messages.SearchMessages(deep)).messages) == len(MAILS)


@pytest.mark.parametrize("sort", [[], [search_pb2.SortKey(property=search_pb2.SORT_PROPERTY_SIZE)]])
async def test_keywords_of_the_whole_thread(
    sort: list[search_pb2.SortKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All, some or none of a thread's messages, this one and those in other mailboxes included,
    have a keyword (RFC 8621 section 4.4.1): also when a page reads few threads, and with a text.
    """
    monkeypatch.setattr(search, "EXAMINED_MAX", 3)
    async with running() as (_, calls):
        names, inbox, other = await filled(calls)
        elsewhere = [message_pb2.MailboxTarget(mailbox_id=other)]
        for thread, keywords in {"mixed": [["$seen"], []], "read": [["$seen"], ["$seen"]]}.items():
            for number, (each, targets) in enumerate(zip(keywords, ([], elsewhere), strict=True)):
                raw = mail(number, "x", **{"Message-ID": f"<{thread}{number}@x>"})
                if number:
                    raw = mail(number, "x", References=f"<{thread}0@x>")
                stored = await calls.append(
                    ALICE, item(raw, internal_time_ms=DAY_MS, keywords=each, targets=targets)
                )
                names[stored.messages[0].message_id] = f"{thread}{number}"
        weekly = text(search_pb2.TEXT_FIELD_BODY, "xxxx")
        unseen = Filter(none_in_thread_have_keyword="$seen")
        for asked, expected in (
            (Filter(all_in_thread_have_keyword="$SEEN"), "lunch invoice read0"),
            (Filter(some_in_thread_have_keyword="$seen"), "lunch invoice mixed0 read0"),
            (unseen, "reply photos lists"),
            (Filter(all_of=several(weekly, unseen)), "reply lists"),
        ):
            request = Request(account_id=ALICE, mailbox_id=inbox, filter=asked, sort=sort)
            assert sorted(await found(calls, request, names)) == sorted(expected.split()), asked
        monkeypatch.setattr(thread_queries, "READ_MAX", 1)
        error = await refusal(
            calls.messages.SearchMessages(Request(account_id=ALICE, filter=unseen))
        )
        assert isinstance(error, errors.FilterUnsupportedError)


@pytest.mark.parametrize(
    ("subject", "base"),
    [
        ("Re: hello", "hello"),
        ("RE: re: Fwd: hello (fwd)", "hello"),
        ("Re[2]: hello", "hello"),
        ("[list] Re: [list] hello", "hello"),
        ("[Fwd: hello]", "hello"),
        ("  two   words ", "two words"),
        ("[only]", "[only]"),
        ("re:", ""),
    ],
)
def test_base_subject(subject: str, base: str) -> None:
    """What replies and lists put around a subject does not sort (RFC 5256 section 2.1)."""
    assert search.base_subject(subject) == base


@pytest.mark.timeout(10)
@pytest.mark.parametrize("part", ["[]", "[fwd:", "re", "[a] ", "re:", "[a"])
def test_base_subject_of_what_was_made_to_be_slow(part: str) -> None:
    """A subject costs a bounded number of steps, whatever a sender makes of it: looked at whole,
    one of these took seconds.
    """
    for _ in range(1_000):
        assert len(search.base_subject(part * 16_000)) <= 256


async def test_changes_and_threads_over_the_wire() -> None:
    """ListChanges, ListMailboxChanges and BatchGetThreads answer with ids and states of the API."""
    async with running() as (_, calls):
        created = await calls.create(ALICE)
        raws = [mail(1, "one", **{"Message-ID": "<1@x>"}), mail(2, "x", References="<1@x>")]
        stored = await calls.append(ALICE, *map(item, raws))
        ids = [each.message_id for each in stored.messages]
        thread = stored.messages[0].thread_id
        request = change_pb2.ListChangesRequest(
            account_id=ALICE, since_state=created.state, page_size=2
        )
        told: dict[int, list[str]] = {}
        while True:
            page = await calls.messages.ListChanges(request)
            for each in page.changes:
                told.setdefault(each.type, []).extend([*each.created, *each.updated])
            request.since_state = page.new_state
            if not page.more:
                break
        assert page.new_state == page.state == stored.state
        assert told[common_pb2.OBJECT_TYPE_MESSAGE] == ids
        assert set(told[common_pb2.OBJECT_TYPE_THREAD]) == {thread}
        greatest = tokens.thread_id(2**64 - 1)
        threads = await calls.messages.BatchGetThreads(
            message_service_pb2.BatchGetThreadsRequest(
                account_id=ALICE, thread_ids=[thread, "Tzz", "nonsense", greatest]
            )
        )
        assert list(threads.threads[0].message_ids) == ids
        assert list(threads.not_found_ids) == ["Tzz", "nonsense", greatest]
        inbox = (
            await calls.mailboxes.GetMailbox(
                mailbox_pb2.GetMailboxRequest(account_id=ALICE, mailbox_role=INBOX)
            )
        ).mailbox
        in_mailbox = change_pb2.ListMailboxChangesRequest(
            account_id=ALICE, mailbox_id=inbox.id, uid_validity=inbox.uid_validity
        )
        listed = await calls.messages.ListMailboxChanges(in_mailbox)
        assert [(each.uid, each.message_id) for each in listed.changed] == [
            (1, ids[0]),
            (2, ids[1]),
        ]
        assert listed.new_modseq == listed.highest_modseq == inbox.highest_modseq
        in_mailbox.uid_validity += 1
        error = await refusal(calls.messages.ListMailboxChanges(in_mailbox))
        assert isinstance(error, errors.UidValidityMismatchError)
        only_threads = change_pb2.ListChangesRequest(
            account_id=ALICE, since_state=created.state, types=[common_pb2.OBJECT_TYPE_ACCOUNT]
        )
        assert not (await calls.messages.ListChanges(only_threads)).changes
        for since in ("", "what"):
            only_threads.since_state = since
            error = await refusal(calls.messages.ListChanges(only_threads))
            assert isinstance(error, errors.BadFieldError)
