"""The rows of the comparison and their aims; what a ratio is, and whether an aim is met. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench.compare.work import Slice
from bench.failover import percentile

OURS: Final = "mailraft"
PEERS: Final = ("etcd", "postgres", "nats", "dovecot")

# Row, then peer: one sample a round. Samples of one round were taken one after the other.
Samples = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True, slots=True)
class Aim:
    """peer: ours divided by the peer's is to be at least (or at most) this; empty: ours itself."""

    limit: float
    peer: str = ""
    at_least: bool = True

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.limit:g}" + (f" × {self.peer}" if self.peer else "")


@dataclass(frozen=True, slots=True)
class Row:
    """One row. work, figure: of rows that slices of a work show; digits: after the point.

    share: of a round's samples, which is told: the median, or 0.95.
    """

    name: str
    title: str
    unit: str
    aims: tuple[Aim, ...] = ()
    work: str = ""
    figure: Callable[[Slice], float] | None = None
    digits: int = 0
    share: float = 0.5
    others: tuple[str, ...] = PEERS

    def told(self, samples: Sequence[float]) -> float:
        """The one figure of a peer."""
        return median(samples) if self.share == 0.5 else percentile(sorted(samples), self.share)

    def ratio(self, ours: Sequence[float], theirs: Sequence[float]) -> float:
        """Ours by theirs. Of medians it is the median of the rounds' ratios, since what else the
        machine did in a round met both alike.
        """
        if self.share == 0.5 and len(ours) == len(theirs):
            return median(mine / other for mine, other in zip(ours, theirs, strict=True))
        return self.told(ours) / self.told(theirs)


@dataclass(frozen=True, slots=True)
class Verdict:
    """value: the ratio, or ours where no peer is named; None: the peer did not run."""

    row: Row
    aim: Aim
    value: float | None

    @property
    def met(self) -> bool | None:
        return None if self.value is None else self.aim.met(self.value)


def verdicts(rows: Sequence[Row], samples: Samples) -> Iterator[Verdict]:
    """Of every aim of the rows that were measured."""
    for row in rows:
        found = samples.get(row.name, {})
        ours = found.get(OURS)
        if not ours:
            continue
        for aim in row.aims:
            theirs = found.get(aim.peer)
            value = None
            if not aim.peer:
                value = row.told(ours)
            elif theirs:
                value = row.ratio(ours, theirs)
            yield Verdict(row, aim, value)


def per_s(found: Slice) -> float:
    return found.per_s


def p50_ms(found: Slice) -> float:
    return found.done.p50_ms


def cpu_s_per_1000(found: Slice) -> float:
    return found.cpu_s_per_1000


ROWS: Final = (
    Row(
        "deliver128",
        "deliver, 128 tasks",
        "mails/s",
        (Aim(2.0, "etcd"), Aim(1.5, "postgres"), Aim(1.0, "nats")),
        "deliver128",
        per_s,
    ),
    Row(
        "deliver128c",
        "the same, the peers' calls coalesced as ours are",
        "mails/s",
        (),
        "deliver128c",
        per_s,
    ),
    Row(
        "bulk",
        "deliver, 1,024 in flight",
        "mails/s",
        (Aim(2.0, "etcd"), Aim(1.0, "postgres")),
        "bulk",
        per_s,
    ),
    Row(
        "single",
        "deliver, one in flight, p50",
        "ms",
        (Aim(1.0, "etcd", at_least=False),),
        "single",
        p50_ms,
        digits=2,
    ),
    Row("fanout", "one mail to 20", "deliveries/s", (Aim(8.0, "dovecot"),), "fanout", per_s),
    Row(
        "get",
        "get with body, linearizable, 32 tasks",
        "mails/s",
        (Aim(2.0, "etcd"), Aim(1.0, "dovecot")),
        "get",
        per_s,
    ),
    Row(
        "page",
        "page of 50 of a large mailbox, 8 tasks",
        "pages/s",
        (Aim(1.0, "dovecot"), Aim(1.0, "etcd")),
        "page",
        per_s,
    ),
    Row(
        "keywords",
        "keyword change, 32 tasks",
        "changes/s",
        (Aim(1.0, "postgres"),),
        "keywords",
        per_s,
    ),
    Row(
        "cpu",
        "server CPU of 1,000 deliveries, bulk",
        "s",
        (Aim(1.0, "etcd", at_least=False),),
        "bulk",
        cpu_s_per_1000,
        digits=3,
    ),
    Row(
        "device",
        "written to the device by a byte of mail, bulk, settled",
        "bytes",
        (Aim(0.5, "etcd", at_least=False),),
        digits=2,
    ),
    Row(
        "size",
        "SST and blob bytes of a byte of mail, one replica",
        "bytes",
        (Aim(0.5, at_least=False),),
        digits=3,
    ),
    Row(
        "restart",
        "restart of a full node until it serves",
        "s",
        (Aim(5.0, at_least=False),),
        digits=2,
    ),
    Row(
        "router",
        "router hop, added p50 (direct: a direct delivery's)",
        "ms",
        (Aim(0.5, "direct", at_least=False),),
        digits=2,
        others=("direct",),
    ),
    Row(
        "failover",
        "SIGKILL of the leader to the next write, p95",
        "s",
        (Aim(1.0, at_least=False), Aim(1.0, "etcd", at_least=False)),
        digits=2,
        share=0.95,
    ),
    Row("tls128", "TLS: deliver, 128 tasks", "mails/s", others=("plain",)),
    Row("tls1", "TLS: deliver, one in flight, p50", "ms", digits=2, others=("plain",)),
)
