"""Reading /metrics of processes, and what two readings say of the time between them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from mailraft.cluster.addresses import split_address

DEADLINE_S = 2.0
PAGE_BYTES_MAX = 16 * 1024 * 1024

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one process told at a time of the event loop's clock. Empty: it did not answer."""

    at_s: float = 0.0
    samples: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float:
        """Over all series of a name that have these labels."""
        wanted = labels.items()
        series = self.samples.get(name, {})
        return sum(value for found, value in series.items() if wanted <= found)

    def by(self, name: str, label: str) -> dict[str, float]:
        """By one label."""
        found: dict[str, float] = defaultdict(float)
        for labels, value in self.samples.get(name, {}).items():
            found[dict(labels)[label]] += value
        return found


@dataclass(frozen=True, slots=True)
class Between:
    """Two readings of one process."""

    before: Scrape
    after: Scrape

    @property
    def known(self) -> bool:
        return bool(self.before.samples and self.after.samples)

    def rate(self, name: str, **labels: str) -> float:
        """Of a counter, a second. 0 after a restart, and where nothing is known."""
        elapsed_s = self.after.at_s - self.before.at_s
        if not self.known or elapsed_s <= 0:
            return 0.0
        more = self.after.total(name, **labels) - self.before.total(name, **labels)
        return max(0.0, more) / elapsed_s

    def quantile_s(self, name: str, share: float) -> float:
        """Of a histogram, as its buckets tell it: the upper end of the one that it falls into."""
        before, after = (each.by(f"{name}_bucket", "le") for each in (self.before, self.after))
        counts = sorted((float(le), after[le] - before.get(le, 0.0)) for le in after)
        if not counts or counts[-1][1] <= 0:
            return 0.0
        wanted, finite = share * counts[-1][1], [le for le, _ in counts if le != float("inf")]
        return next((le for le, count in counts if count >= wanted and le in finite), finite[-1])


async def scrape_all(addresses: Iterable[str]) -> dict[str, Scrape]:
    """Every process at once, by its address."""
    asked = list(addresses)
    return dict(zip(asked, await asyncio.gather(*map(scrape, asked)), strict=True))


async def scrape(address: str) -> Scrape:
    """One process, at HOST:PORT."""
    page = await page_of(address)
    if page is None:
        return Scrape()
    return Scrape(asyncio.get_running_loop().time(), parse(page))


async def page_of(address: str) -> str | None:
    """The page as it is; None: no answer."""
    host, port = split_address(address)
    try:
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
                page = await _all(reader)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    return page.partition(b"\r\n\r\n")[2].decode()


def parse(page: str) -> dict[str, dict[Labels, float]]:
    """Name to labels to value."""
    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(page):
        for each in family.samples:
            samples[each.name][frozenset(each.labels.items())] = each.value
    return samples


async def _all(reader: asyncio.StreamReader) -> bytes:
    page = b""
    while more := await reader.read(64 * 1024):
        page += more
        if len(page) > PAGE_BYTES_MAX:
            raise OSError("the page has no end")
    return page
