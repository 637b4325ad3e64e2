"""What a mailbox of a million messages costs beside one of a thousand: `make mailbox-size`.

Both lie in one shard of one node and are built through its state machine and engine, without
network or consensus: log entries of many appends. Then every operation is measured on both by
turns, so that whatever else the machine does meets both alike. Nothing waits for the disk: a flush
costs the same whatever the mailbox, and would hide what is compared here.

Places in the mailbox are uniformly random: the least that a cache can help with. Three tables tell
apart what the size of the mailbox costs and what reading it from disk does: right after a restart,
when nearly each place is read for the first time (for information); once all was read, as in a node
that runs, with the default cache; and with a cache that holds all.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine.options import MIB, StoreOptions
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import (
    AppendEntries,
    ApplyWrite,
    CompactLog,
    Configuration,
    Entry,
    EntryKind,
    LogBase,
    Proposal,
    View,
    replica_id,
)
from mailraft.node.mailstore import queries
from mailraft.node.mailstore.machine import MailStateMachine
from mailraft.v1 import message_pb2
from mailraft.wire import bodies

SMALL: Final = 1_000
RATIO_MAX: Final = 1.3
INBOX: Final = 1
GROUP: Final = 1
TERM: Final = 1
START_MS: Final = 1_750_000_000_000
PAGE: Final = 50
BODY_BYTES: Final = 200
ITEMS_PER_COMMAND: Final = 250
COMMANDS_PER_ENTRY: Final = 4
COMPACT_EVERY_ENTRIES: Final = 50
PROGRESS_EVERY_S: Final = 10.0
WARM_UP_ROUNDS: Final = 20
# Between two messages; and how far from that order most of them came in.
APART_MS: Final = 30_000
JITTER_MS: Final = 3_600_000
WHOLE_CACHE_BYTES: Final = 2048 * MIB
KEYWORDS: Final = (("$seen",), ("$seen", "$flagged"), ())


class Shard:
    """One shard of a node: a store, and the state machine over it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._machine = MailStateMachine()
        self._store = Store.open(folder, cluster_id="bench", node=1)
        self._configuration = Configuration(1, (replica_id(1, 1),))
        self._store.create_group(GROUP, replica_id(1, 1), self._configuration)
        self._index = self._store.applied(GROUP)[0]

    @property
    def view(self) -> View:
        return self._store.view(GROUP)

    def commit(self, *proposals: Proposal) -> None:
        """One log entry, written and applied as a leader does it, but for the flush."""
        payload, packed = self._machine.encode(proposals)
        self._index += 1
        entry = Entry(self._index, TERM, EntryKind.COMMAND, payload, packed)
        self._store.write([AppendEntries(GROUP, (entry,))])
        done = self._machine.apply(self.view, entry)
        self._store.write([ApplyWrite(GROUP, entry.index, TERM, done.effects)])
        if self._index % COMPACT_EVERY_ENTRIES == 0:
            base = LogBase(self._index, TERM, self._configuration)
            self._store.write([CompactLog(GROUP, base)])

    def reopen(self, options: StoreOptions) -> None:
        """As after a restart."""
        self._store.close()
        self._store = Store.open(self._folder, cluster_id="bench", node=1, options=options)
        self._store.load(GROUP)

    def warm_up(self) -> None:
        """Read all of it once."""
        for _ in self.view.scan(b"", b"\xff\xff\xff"):
            pass

    def close(self) -> None:
        self._store.close()


class Mailbox:
    """The inbox of an account, with `size` messages once it is built."""

    def __init__(self, shard: Shard, size: int, seed: int, scattered: float) -> None:
        self.shard, self.size, self._scattered = shard, size, scattered
        self.account = f"with-{size}"
        self.random = random.Random(seed)
        self._number = 0  # of the last message

    @property
    def view(self) -> View:
        return self.shard.view

    def build(self) -> None:
        """Fill it."""
        created = command_pb2.Command(time_ms=START_MS)
        created.create_account.account_id = self.account
        self.shard.commit(Proposal(created))
        began_s = told_s = time.monotonic()
        while self._number < self.size:
            self.shard.commit(*self._appends())
            now_s = time.monotonic()
            if now_s > told_s + PROGRESS_EVERY_S:
                told_s = now_s
                rate = self._number / (now_s - began_s)
                print(f"  {self._number:>9,} of {self.size:,}: {rate:,.0f}/s", flush=True)
        took_s = time.monotonic() - began_s
        print(f"  {self.size:>9,} messages appended in {took_s:.1f} s", flush=True)

    def open(self) -> float:
        """In how many milliseconds it shows its counts and its newest page the first time."""
        began_s = time.perf_counter()
        assert queries.mailbox(self.view, self.account, INBOX).total_messages >= self.size
        page_newest(self)()
        return (time.perf_counter() - began_s) * 1e3

    def append(self, count: int) -> Proposal:
        """An append of so many new messages, each with a body and a Message-ID of its own."""
        command = command_pb2.Command(time_ms=START_MS + self._number)
        command.append.account_id = self.account
        packed = []
        for ordinal in range(count):
            self._number += 1
            raw = b"Subject: %d\r\n\r\n" % self._number
            raw += b"x" * (BODY_BYTES - len(raw))
            packed.append(bodies.pack(raw))
            envelope = message_pb2.Envelope(message_id=f"{self._number}@example.org")
            derived = message_pb2.Derived(parser_version=1, envelope=envelope)
            command.append.items.add(
                body=command_pb2.NewBody(
                    ordinal=ordinal,
                    size_bytes=len(raw),
                    stored_bytes=len(packed[-1]),
                    sha256=hashlib.sha256(raw).digest(),
                ),
                keywords=KEYWORDS[self._number % len(KEYWORDS)],
                internal_time_ms=self._received_ms(),
                derived=derived.SerializeToString(),
            )
        return Proposal(command, tuple(packed))

    def _received_ms(self) -> int:
        if self.random.random() < self._scattered:
            return START_MS + self.random.randrange(self.size) * APART_MS
        return START_MS + self._number * APART_MS + self.random.randrange(JITTER_MS)

    def _appends(self) -> Iterator[Proposal]:
        for _ in range(COMMANDS_PER_ENTRY):
            left = self.size - self._number
            if left > 0:
                yield self.append(min(left, ITEMS_PER_COMMAND))


# ---- what is measured: each prepares a call, then only the call is timed -------------------------

Call = Callable[[], object]


def _page(mailbox: Mailbox, order: queries.Order, cursor: queries.PageCursor | None) -> Call:
    return lambda: queries.page(mailbox.view, mailbox.account, INBOX, order, PAGE, cursor)


def _uid(mailbox: Mailbox) -> int:
    """Any, with a whole page behind it in each direction."""
    return mailbox.random.randint(PAGE + 1, mailbox.size - PAGE)


def _cursor(mailbox: Mailbox, order: queries.Order, uid: int, ms: int = 0) -> queries.PageCursor:
    validity = queries.mailbox(mailbox.view, mailbox.account, INBOX).uid_validity
    return queries.PageCursor(INBOX, validity, order, uid, ms)


def page_after_uid(mailbox: Mailbox) -> Call:
    order = queries.Order.UID_ASCENDING
    return _page(mailbox, order, _cursor(mailbox, order, _uid(mailbox)))


def page_by_uids(mailbox: Mailbox) -> Call:
    first = _uid(mailbox)
    validity = queries.mailbox(mailbox.view, mailbox.account, INBOX).uid_validity
    wanted = [(first, first + PAGE - 1)]
    return lambda: queries.messages_by_uid(
        mailbox.view, mailbox.account, INBOX, validity, wanted, PAGE
    )


def page_from_token(mailbox: Mailbox) -> Call:
    """Behind a page that was read before, as a client scrolls."""
    order = queries.Order.UID_DESCENDING
    before = queries.page(
        mailbox.view, mailbox.account, INBOX, order, 1, _cursor(mailbox, order, _uid(mailbox))
    )
    return _page(mailbox, order, before.following)


def page_newest(mailbox: Mailbox) -> Call:
    return _page(mailbox, queries.Order.UID_DESCENDING, None)


def page_by_date(mailbox: Mailbox) -> Call:
    """From the time of any message on."""
    uid = _uid(mailbox)
    record = queries.message(mailbox.view, mailbox.account, uid)  # ids and UIDs are the same here
    order = queries.Order.RECEIVED_DESCENDING
    return _page(mailbox, order, _cursor(mailbox, order, uid, record.internal_time_ms))


def page_newest_by_date(mailbox: Mailbox) -> Call:
    return _page(mailbox, queries.Order.RECEIVED_DESCENDING, None)


def one_message(mailbox: Mailbox) -> Call:
    number = _uid(mailbox)
    return lambda: queries.message(mailbox.view, mailbox.account, number)


def counts(mailbox: Mailbox) -> Call:
    """As GetMailbox: the counters and the keywords in use."""

    def call() -> record_pb2.MailboxRecord:
        view = mailbox.view
        found = queries.mailbox(view, mailbox.account, INBOX)
        queries.account_state(view, mailbox.account)
        queries.keywords_in_use(view, mailbox.account, INBOX)
        return found

    return call


def flag_change(mailbox: Mailbox) -> Call:
    command = command_pb2.Command(time_ms=START_MS)
    change = command.modify_keywords
    change.account_id = mailbox.account
    change.messages.messages.append(_uid(mailbox))
    change.replace = True
    change.keywords.append(f"word{mailbox.random.randrange(8)}")
    return lambda: mailbox.shard.commit(Proposal(command))


def one_append(mailbox: Mailbox) -> Call:
    proposal = mailbox.append(1)
    return lambda: mailbox.shard.commit(proposal)


OPERATIONS: Final[dict[str, Callable[[Mailbox], Call]]] = {
    "page of 50 behind any UID": page_after_uid,
    "page of 50 by a range of UIDs": page_by_uids,
    "page of 50 from a token": page_from_token,
    "page of 50, newest first": page_newest,
    "page of 50 from any date": page_by_date,
    "page of 50, latest date first": page_newest_by_date,
    "one message by id": one_message,
    "counts (GetMailbox)": counts,
    "flag change": flag_change,
    "append": one_append,
}


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one operation."""

    name: str
    small_us: float
    large_us: float

    @property
    def ratio(self) -> float:
        return self.large_us / self.small_us


def measure(small: Mailbox, large: Mailbox, rounds: int) -> list[Row]:
    """Every operation on both."""
    took_us = medians((small, large), rounds)
    return [Row(name, took_us[name, small.size], took_us[name, large.size]) for name in OPERATIONS]


def medians(mailboxes: Sequence[Mailbox], rounds: int) -> dict[tuple[str, int], float]:
    """Microseconds by operation and size: every round does every operation once on all mailboxes,
    in an order that changes.
    """
    took: dict[tuple[str, int], list[float]] = {}
    for number in range(WARM_UP_ROUNDS + rounds):
        for name, prepare in OPERATIONS.items():
            for mailbox in mailboxes if number % 2 else reversed(mailboxes):
                call = prepare(mailbox)
                began_s = time.perf_counter()
                call()
                took_us = (time.perf_counter() - began_s) * 1e6
                if number >= WARM_UP_ROUNDS:
                    took.setdefault((name, mailbox.size), []).append(took_us)
    return {key: statistics.median(values) for key, values in took.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000, help="of the large mailbox")
    parser.add_argument("--rounds", type=int, default=500, help="of every operation")
    parser.add_argument(
        "--scattered",
        type=float,
        default=0.1,
        help="share of messages whose date has nothing to do with their UID, as imported ones have",
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--dir", type=Path, default=None, help="where the stores are built")
    parser.add_argument("--ratio-max", type=float, default=RATIO_MAX)
    parser.add_argument("--check", action="store_true", help="fail above the bound")
    return parser.parse_args()


def main() -> int:
    """1 with --check when an operation on the large mailbox costs more than it may."""
    asked = arguments()
    if asked.messages < SMALL:
        print(f"--messages: at least {SMALL:,}")
        return 2
    print(f"building {SMALL:,} and {asked.messages:,} messages, seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mailraft-size-", dir=asked.dir) as folder:
        shard = Shard(Path(folder) / "data")
        small, large = (
            Mailbox(shard, size, asked.seed, asked.scattered) for size in (SMALL, asked.messages)
        )
        for mailbox in (small, large):
            mailbox.build()
        default, whole = StoreOptions(), StoreOptions(block_cache_bytes=WHOLE_CACHE_BYTES)
        show("after a restart", small, large, asked, default, warm=False)
        above = show("the default cache", small, large, asked, default)
        above += show("a cache that holds all", small, large, asked, whole)
        shard.close()
    return 1 if above > 0 and bool(asked.check) else 0


def show(
    what: str,
    small: Mailbox,
    large: Mailbox,
    asked: argparse.Namespace,
    options: StoreOptions,
    *,
    warm: bool = True,
) -> int:
    """Measure after a restart, and print the table; answers how many are above the bound."""
    shard = small.shard
    shard.reopen(options)
    opened_ms = [mailbox.open() for mailbox in (large, small)]
    if warm:
        shard.warm_up()
    rows = measure(small, large, asked.rounds)
    print(f"\n{what + ', medians in µs':44}{small.size:>10,}{large.size:>12,}   ratio")
    for row in rows:
        mark = "  above" if row.ratio > asked.ratio_max else ""
        print(f"{row.name:44}{row.small_us:10.1f}{row.large_us:12.1f}{row.ratio:8.2f}{mark}")
    print(f"{'first look after a restart, ms':44}{opened_ms[1]:10.1f}{opened_ms[0]:12.1f}")
    above = sum(1 for row in rows if row.ratio > float(asked.ratio_max))
    print(f"bound {asked.ratio_max}: {len(rows) - above} of {len(rows)} within", flush=True)
    return above


if __name__ == "__main__":
    sys.exit(main())
