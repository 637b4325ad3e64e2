"""Mail as files, and out of the store and in again."""

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_services_node import ALICE, BOB, FakeNode, account_in, running

from mailbox_audit import audit
from mailraft.client import AsyncClient, MailboxRole, NewMessage, errors
from mailraft.cluster import mailfiles
from mailraft.cluster.cli import mail_import
from mailraft.cluster.cli.mail_export import Exporter, Target
from mailraft.cluster.cli.mail_export import Report as Exported
from mailraft.cluster.cli.mail_import import Importer, Report, State
from mailraft.cluster.corpus import Corpus, default_path
from mailraft.cluster.errors import CorpusError, SettingsError
from mailraft.cluster.mail_sources import Record, Source
from mailraft.cluster.mailfiles import Entry, Format
from mailraft.wire.limits import MESSAGE_MAX_BYTES

MAX = 1_000_000
CAROL = account_in(0, "carol")


def corpora() -> list[Path]:
    """The messages of the repository, and the corpus where it is at hand."""
    named = os.environ.get("MAILRAFT_CORPUS", "")
    beside = Path(named) if named else default_path().parents[2] / "shared" / "corpus"
    return [default_path(), *([beside] if beside.exists() else [])]


def hashes(raws: Iterator[bytes] | list[bytes]) -> list[str]:
    """What was stored, whatever the order."""
    return sorted(hashlib.sha256(raw).hexdigest() for raw in raws)


class Silent:
    """A progress bar that nobody sees."""

    def advance(self, done: int) -> None:
        pass


# ---- formats -------------------------------------------------------------------------------------

LINES = st.sampled_from(
    [b"From ", b">From ", b">>From x", b"From a 10:00 2024", b"x", b"", b"\xff\x00", b"From"]
)
RAW = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r", b"", b"\n\n"]))).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@given(st.lists(RAW, min_size=1, max_size=5))
def test_an_mbox_gives_back_what_was_put_in(raws: list[bytes]) -> None:
    """Byte for byte, whatever the messages begin, hold and end with."""
    written = b"".join(mailfiles.mbox_message(raw, 1_700_000_000_000) for raw in raws)
    assert list(mailfiles.read_mbox(io.BytesIO(written), MAX)) == raws


@given(RAW)
def test_quoting_can_be_undone(raw: bytes) -> None:
    """And leaves no line that begins as a separator does."""
    quoted = mailfiles.quoted(raw)
    assert mailfiles.unquoted(quoted) == raw
    assert not any(line.startswith(b"From ") for line in quoted.split(b"\n"))


@pytest.mark.parametrize("path", corpora(), ids=lambda path: path.name)
def test_an_mbox_of_a_whole_corpus(path: Path, tmp_path: Path) -> None:
    """Every message comes back with the same bytes, in the same order."""
    raws = [message.raw for message in Corpus(path)]
    written = tmp_path / "all.mbox"
    with written.open("wb") as file:
        for raw in raws:
            file.write(mailfiles.mbox_message(raw, 0))
    with written.open("rb") as file:
        assert list(mailfiles.read_mbox(file, 4 * MAX)) == raws


def test_an_mbox_of_another_program() -> None:
    """Lines that only look like a separator are text; what comes before the first one is none."""
    other = (
        b"leading\nFrom ann@example.org Sat Jan  3 01:05:34 1996\nSubject: a\n\n"
        b"From here on it is text\n>From quoted\n\n"
        b"From bob Sat Jan  3 01:05:34 1996 +0100\nSubject: b\n\nb\n\n"
    )
    assert list(mailfiles.read_mbox(io.BytesIO(other), MAX)) == [
        b"Subject: a\n\nFrom here on it is text\nFrom quoted\n",
        b"Subject: b\n\nb\n",
    ]


def test_a_message_that_is_too_large_does_not_stop_the_next() -> None:
    """It is told as a problem, and is not kept in memory."""
    raws = [b"small", b"x\n" * 5_000, b"next"]
    written = b"".join(mailfiles.mbox_message(raw, 0) for raw in raws)
    found = list(mailfiles.read_mbox(io.BytesIO(written), 1_000))
    assert found == [b"small", "larger than 1000 bytes", b"next"]


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@given(st.lists(NAMES, min_size=1, max_size=3).map(tuple))
def test_mailboxes_are_names_of_files(path: tuple[str, ...]) -> None:
    """No slash, not hidden, and back again; a long one stays below what file systems hold."""
    name = mailfiles.flat_name(path)
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name) <= mailfiles.NAME_MAX_CHARS
    folder = mailfiles.maildir_folder(path)
    if len("".join(path).encode()) < 40 and path != ("INBOX",):
        assert mailfiles.mailbox_of_folder(folder) == path
    assert len(mailfiles.flat_name(("ä" * 85,) * 16)) <= mailfiles.NAME_MAX_CHARS


def test_flags_in_the_name_of_a_file() -> None:
    """As Maildir has them; keywords that have none are in the index alone."""
    name = mailfiles.maildir_name("M1", 1_700_000_000_000, ("$seen", "$flagged", "x"), True)
    assert name == "1700000000.M1.mailraft:2,FST"
    assert mailfiles.flags_of(name) == (("$flagged", "$seen"), True)
    assert mailfiles.flags_of("1700000000.M1.host") == ((), False)


def test_a_damaged_index_is_told_line_by_line(tmp_path: Path) -> None:
    """What can be read is, and fields of later versions are passed over."""
    good = Entry("a.eml", 1, "00", ("INBOX",), keywords=("$seen",))
    path = tmp_path / mailfiles.INDEX_NAME
    later = json.dumps({**json.loads(good.to_line()), "file": "b.eml", "shape": "round"})
    path.write_text(f'{good.to_line()}[]\n{{"file": 1}}\n{later}\n{{"file"', "utf-8")
    index = mailfiles.Index.read(path)
    assert index.entries["a.eml", 0] == good
    assert ("b.eml", 0) in index.entries
    assert [problem.partition(": ")[0] for problem in index.problems] == [
        "index.jsonl:2",
        "index.jsonl:3",
        "index.jsonl:5",
    ]


def test_sources(tmp_path: Path) -> None:
    """Each kind is known by what it looks like; damaged and empty records are told, not raised."""
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "a.mbox").write_bytes(mailfiles.mbox_message(b"1", 0))
    (tmp_path / "md" / "cur").mkdir(parents=True)
    (tmp_path / "md" / "cur" / "1.x:2,SR").write_bytes(b"2")
    (tmp_path / "md" / ".Work.Lists" / "new").mkdir(parents=True)
    (tmp_path / "md" / ".Work.Lists" / "new" / "2.x").write_bytes(b"3")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "x.eml").write_bytes(b"4")
    (tmp_path / "tree" / "empty.eml").write_bytes(b"")
    (tmp_path / "tree" / "large.eml").write_bytes(b"x" * 100)
    (tmp_path / "tree" / "other.eml").write_bytes(b"5")
    entry = Entry("other.eml", 1, "beef", ("INBOX",))
    (tmp_path / "tree" / "index.jsonl").write_text(entry.to_line(), "utf-8")

    def read(name: str) -> list[Record]:
        return list(Source(tmp_path / name, 50))

    assert [each.raw for each in read("box")] == [b"1"]
    assert [each.raw for each in read("box/a.mbox")] == [b"1"]
    one, two = read("md")
    assert (one.keywords, one.mailbox) == (("$answered", "$seen"), ("INBOX",))
    assert two.mailbox == ("Work", "Lists")
    assert [(each.raw, each.problem) for each in read("tree")] == [
        (b"4", ""),
        (b"", "empty"),
        (b"", "larger than 50 bytes"),
        (b"", "damaged: other bytes than the index says"),
    ]
    for name in ("nothing", "box/nothing.mbox", "tree/other.eml"):
        with pytest.raises(CorpusError):
            read(name)


# ---- out of a store and in again -----------------------------------------------------------------


def client_of(port: int) -> AsyncClient:
    """A client of a node that runs in the test."""
    return AsyncClient(f"127.0.0.1:{port}", insecure=True, direct=False)


async def bring_in(mail: AsyncClient, account: str, source: Path, state: Path) -> Report:
    """One run of `mailraft mail import`."""
    done = State.open(state, account)
    found = Source(source, done.max_bytes)
    return await Importer(mail, account, found, done, "", Silent()).run()


async def take_out(mail: AsyncClient, account: str, folder: Path, format_: Format) -> Exported:
    """One run of `mailraft mail export`."""
    return await Exporter(mail, account, Target(folder, format_), "").run()


async def stored(mail: AsyncClient, account: str) -> list[bytes]:
    """The bytes of every membership of an account."""
    return [
        await mail.fetch_body(account, message.id)
        for mailbox in await mail.list_mailboxes(account)
        async for message in mail.iter_messages(account, mailbox.id, page_size=500)
    ]


def port_of(node: FakeNode) -> int:
    """Where a node listens, which from now on is in the present: clients make request ids of it."""
    node.time_ms = time.time_ns() // 1_000_000
    return node.port


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", corpora(), ids=lambda path: path.name)
async def test_a_corpus_goes_round(path: Path, tmp_path: Path) -> None:
    """Imported, exported as mbox and as Maildir, and each imported again: every message's bytes are
    what they were.
    """
    async with running() as (node, _), client_of(port_of(node)) as mail:
        expected = hashes(message.raw for message in Corpus(path) if message.raw)
        for account in (ALICE, BOB, CAROL):
            await mail.create_account(account)
        report = await bring_in(mail, ALICE, path, tmp_path / "state")
        assert report.imported == len(expected)
        assert hashes(await stored(mail, ALICE)) == expected
        for account, format_ in ((BOB, Format.MBOX), (CAROL, Format.MAILDIR)):
            folder = tmp_path / format_
            out = await take_out(mail, ALICE, folder, format_)
            assert (out.exported, out.skipped) == (len(expected), [])
            back = await bring_in(mail, account, folder, tmp_path / f"state-{format_}")
            assert (back.imported, back.skipped) == (len(expected), [])
            assert hashes(await stored(mail, account)) == expected


@pytest.mark.parametrize("format_", list(Format))
async def test_what_the_store_knows_of_a_message_comes_back(
    format_: Format, tmp_path: Path
) -> None:
    """Mailboxes by their path, roles, keywords, the flag Deleted, dates, order, and that one
    message is in two mailboxes.
    """
    async with running() as (node, _), client_of(port_of(node)) as mail:
        await mail.create_account(ALICE)
        await mail.create_account(BOB)
        work = await mail.create_mailbox(ALICE, "Work. / ü")
        lists = await mail.create_mailbox(ALICE, "Lists", parent_id=work.id)
        junk = await mail.create_mailbox(ALICE, "Spam", role=MailboxRole.JUNK)
        when = mail_import._time(1_600_000_123_456)
        [first] = await mail.append(
            ALICE, [NewMessage(b"one", keywords=["$seen", "Work!"], internal_time=when)]
        )
        await mail.append(ALICE, [NewMessage(b"two", deleted=True), b"three\n"], lists.id)
        await mail.append(ALICE, [b"four\r\n"], junk.id)
        await mail.copy_messages(ALICE, [first.message_id], lists.id)
        await take_out(mail, ALICE, tmp_path / "out", format_)
        back = await bring_in(mail, BOB, tmp_path / "out", tmp_path / "state")
        assert back.skipped == []

        async def seen(account: str) -> dict[str, object]:
            found: dict[str, object] = {}
            mailboxes = {each.id: each for each in await mail.list_mailboxes(account)}
            for mailbox in mailboxes.values():
                parent = mailboxes[mailbox.parent_id].name if mailbox.parent_id else ""
                found[f"{parent}/{mailbox.name}"] = [
                    mailbox.role,
                    [
                        (
                            await mail.fetch_body(account, message.id),
                            list(message.keywords),
                            message.internal_time_ms,
                            len(message.memberships),
                            next(
                                each.deleted
                                for each in message.memberships
                                if each.mailbox_id == mailbox.id
                            ),
                        )
                        async for message in mail.iter_messages(account, mailbox.id)
                    ],
                ]
            return found

        before, after = await seen(ALICE), await seen(BOB)
        assert after == before
        usage = (await mail.get_account(BOB)).usage
        assert usage.messages == 4


async def test_an_import_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off at any step, also between the answer and its line in the state, it imports each
    message once; run again when it is done, nothing.
    """
    monkeypatch.setattr(mail_import, "BATCH_MESSAGES_MAX", 3)
    source = tmp_path / "in"
    source.mkdir()
    for number in range(10):
        (source / f"{number}.eml").write_bytes(b"mail %d" % number)
    async with running() as (node, _), client_of(port_of(node)) as mail:
        await mail.create_account(ALICE)
        state = tmp_path / "state"
        for lost in (1, 2):
            broken = State.open(state, ALICE)
            real_add, calls = broken.add, 0

            def add(step: dict[str, object], lost: int = lost, real=real_add) -> None:  # type: ignore[no-untyped-def]
                nonlocal calls
                calls += 1
                if calls == lost:
                    raise KeyboardInterrupt
                real(step)

            broken.add = add  # type: ignore[method-assign]
            importer = Importer(mail, ALICE, Source(source, broken.max_bytes), broken, "", Silent())
            with pytest.raises(KeyboardInterrupt):
                await importer.run()
        with state.open("a") as file:
            file.write('{"names": ["cut of')  # as a crash leaves it
        report = await bring_in(mail, ALICE, source, state)
        assert report.imported + report.before == 10
        assert hashes(await stored(mail, ALICE)) == hashes([b"mail %d" % n for n in range(10)])
        again = await bring_in(mail, ALICE, source, state)
        assert (again.imported, again.before) == (0, 10)
        (source / "0.eml").rename(source / "99.eml")
        with pytest.raises(SettingsError, match="not what it was"):
            await bring_in(mail, ALICE, source, state)
        with pytest.raises(SettingsError, match="another import"):
            State.open(state, BOB)


@pytest.mark.parametrize("format_", [Format.MBOX, Format.MAILDIR])
async def test_large_messages_go_round(format_: Format, tmp_path: Path) -> None:
    """Above what a call carries they are uploaded, among small ones and in order; an import that
    ends between the answer and its line in the state takes none twice.
    """
    large = b"Subject: large\r\n\r\nFrom x\n" + hashlib.shake_128(b"x").digest(5 * 1024 * 1024)
    raws = [b"small", large, b"last\n"]
    source = tmp_path / "in"
    source.mkdir()
    for number, raw in enumerate(raws):
        (source / f"{number}.eml").write_bytes(raw)
    async with running() as (node, _), client_of(port_of(node)) as mail:
        for account in (ALICE, BOB):
            await mail.create_account(account)
        state = tmp_path / "state"
        assert (await bring_in(mail, ALICE, source, state)).imported == 3
        lines = state.read_text().splitlines(keepends=True)
        state.write_text(lines[0])
        again = await bring_in(mail, ALICE, source, state)
        assert (again.imported, again.skipped) == (3, [])
        assert await stored(mail, ALICE) == raws
        await take_out(mail, ALICE, tmp_path / "out", format_)
        back = await bring_in(mail, BOB, tmp_path / "out", tmp_path / "back")
        assert (back.imported, back.skipped) == (3, [])
        assert await stored(mail, BOB) == raws
        shard = node.shard_of(ALICE)
        audit(shard.view, shard.bodies)


async def test_an_import_of_the_first_release_goes_on(tmp_path: Path) -> None:
    """It skipped messages above 3 MiB. So does the rest of it, since its steps are counted."""
    source = tmp_path / "in"
    source.mkdir()
    for number, size_bytes in enumerate((3, MESSAGE_MAX_BYTES + 1, 4)):
        (source / f"{number}.eml").write_bytes(b"x" * size_bytes)
    async with running() as (node, _), client_of(port_of(node)) as mail:
        await mail.create_account(ALICE)
        state = tmp_path / "state"
        run = State.open(state, ALICE).run
        state.write_text(json.dumps({"run": run.hex(), "account": ALICE}) + "\n")
        for imported, before in ((2, 0), (0, 2)):
            report = await bring_in(mail, ALICE, source, state)
            assert (report.imported, report.before) == (imported, before)
            assert report.skipped == [f"1.eml: larger than {MESSAGE_MAX_BYTES} bytes"]


async def test_records_that_cannot_go_in_are_skipped(tmp_path: Path) -> None:
    """One that the store refuses is told by name, and its neighbours are imported."""
    source = tmp_path / "in"
    source.mkdir()
    lines = []
    for name, keywords in (("a", ("ok",)), ("b", ("no good",)), ("c", ())):
        (source / f"{name}.eml").write_bytes(name.encode())
        digest = hashlib.sha256(name.encode()).hexdigest()
        entry = Entry(f"{name}.eml", 1, digest, ("INBOX",), keywords=keywords)
        lines.append(entry.to_line())
    (source / "index.jsonl").write_text("".join(lines), "utf-8")
    async with running() as (node, _), client_of(port_of(node)) as mail:
        await mail.create_account(ALICE)
        report = await bring_in(mail, ALICE, source, tmp_path / "state")
        assert report.imported == 2
        [skipped] = report.skipped
        assert skipped.startswith("b.eml: ")
        assert hashes(await stored(mail, ALICE)) == hashes([b"a", b"c"])


@pytest.mark.parametrize("format_", list(Format))
async def test_an_export_goes_on_where_it_was(format_: Format, tmp_path: Path) -> None:
    """Broken off after the mail and before the index, or with half a message written, it writes
    each message once; what came since is added.
    """
    async with running() as (node, _), client_of(port_of(node)) as mail:
        await mail.create_account(ALICE)
        await mail.append(ALICE, [b"mail %d" % number for number in range(20)])
        folder = tmp_path / "out"
        await take_out(mail, ALICE, folder, format_)
        index = folder / "index.jsonl"
        lines = index.read_text().splitlines(keepends=True)
        index.write_text("".join(lines[:7]) + lines[7][:30])
        if format_ is Format.MBOX:
            with (folder / "INBOX.mbox").open("ab") as file:
                file.write(b"From x half a mess")
        await mail.append(ALICE, [b"later"])
        report = await take_out(mail, ALICE, folder, format_)
        assert (report.exported, report.before) == (14, 7)
        raws = [record.raw for record in Source(folder, MAX)]
        assert hashes(raws) == hashes([*(b"mail %d" % number for number in range(20)), b"later"])
        assert not any(record.problem for record in Source(folder, MAX))
        other = Format.EML if format_ is Format.MBOX else Format.MBOX
        with pytest.raises(SettingsError, match="another format"):
            Target(folder, other)
        with pytest.raises(SettingsError, match="not empty"):
            Target(default_path(), format_)


async def test_a_damaged_message_is_skipped_in_an_export(tmp_path: Path) -> None:
    """It is told by its id, and the rest is exported."""
    async with running() as (node, _), client_of(port_of(node)) as mail:
        await mail.create_account(ALICE)
        stored_now = await mail.append(ALICE, [b"good", b"bad", b"good too"])
        shard = node.shard_of(ALICE)
        position = sorted(shard.bodies)[1]
        shard.bodies[position] = b"damaged"
        report = await take_out(mail, ALICE, tmp_path / "out", Format.EML)
        assert report.exported == 2
        [skipped] = report.skipped
        assert skipped.startswith(f"{stored_now[1].message_id}: ")
        with pytest.raises(errors.MailboxNotFoundError):
            await Exporter(mail, ALICE, Target(tmp_path / "x", Format.EML), "Fzz").run()
