"""A bar chart as SVG, by hand: rows of labelled bars on a linear or logarithmic axis."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 860
LABEL_WIDTH = 250
VALUE_WIDTH = 80
BAR_HEIGHT = 13
GAP = 11
HEADER_HEIGHT = 64
COLOURS = ("#9aa5b1", "#2f6fab", "#d9822b")
STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-size:14px;font-weight:bold}"
    ".axis{stroke:#222}.grid{stroke:#ddd}.small{font-size:10px;fill:#555}"
)


@dataclass(frozen=True)
class Chart:
    """Bars of each series in each row, from `start` on; `ticks` are axis values, the last its end.

    rows: a label and a value for each series.
    """

    title: str
    series: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float]]]
    ticks: Sequence[float]
    value_format: str
    logarithmic: bool = False

    @property
    def height(self) -> int:
        return HEADER_HEIGHT + len(self.rows) * self._row_height + GAP

    @property
    def _row_height(self) -> int:
        return len(self.series) * BAR_HEIGHT + GAP

    def _x(self, value: float) -> float:
        first, last = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            value, first, last = math.log10(value), math.log10(first), math.log10(last)
        part = min(max((value - first) / (last - first), 0.0), 1.0)
        return round(LABEL_WIDTH + part * (WIDTH - LABEL_WIDTH - VALUE_WIDTH), 1)

    def lines(self) -> Iterator[str]:
        """The elements of the chart, its top at 0."""
        yield f'<text class="title" x="10" y="20">{escape(self.title)}</text>'
        for number, name in enumerate(self.series):
            x = LABEL_WIDTH + number * 170
            yield f'<rect x="{x}" y="29" width="10" height="10" fill="{COLOURS[number]}"/>'
            yield f'<text x="{x + 15}" y="38">{escape(name)}</text>'
        bottom = self.height - GAP
        for tick in self.ticks:
            x_tick = self._x(tick)
            yield f'<text class="small" x="{x_tick}" y="55" text-anchor="middle">{tick:,}</text>'
            yield f'<line class="grid" x1="{x_tick}" x2="{x_tick}" y1="58" y2="{bottom}"/>'
        for row, (label, values) in enumerate(self.rows):
            top = HEADER_HEIGHT + row * self._row_height
            middle = top + len(values) * BAR_HEIGHT / 2 + 4
            at = f'x="{LABEL_WIDTH - 10}" y="{middle}"'
            yield f'<text {at} text-anchor="end">{escape(label)}</text>'
            for number, value in enumerate(values):
                y, width = top + number * BAR_HEIGHT, round(self._x(value) - LABEL_WIDTH, 1)
                yield (
                    f'<rect x="{LABEL_WIDTH}" y="{y}" width="{width}" height="{BAR_HEIGHT - 2}"'
                    f' fill="{COLOURS[number]}"/>'
                )
                shown = format(value, self.value_format)
                yield f'<text class="small" x="{self._x(value) + 5}" y="{y + 9}">{shown}</text>'
        yield (f'<line class="axis" x1="{LABEL_WIDTH}" x2="{LABEL_WIDTH}" y1="58" y2="{bottom}"/>')


def svg(charts: Sequence[Chart]) -> str:
    """The charts below each other."""
    height = sum(chart.height for chart in charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    top = 0
    for chart in charts:
        parts += [f'<g transform="translate(0,{top})">', *chart.lines(), "</g>"]
        top += chart.height
    return "\n".join([*parts, "</svg>", ""])


def round_ticks(rows: Sequence[tuple[str, Sequence[float]]]) -> Sequence[float]:
    """Five steps of a round number that hold the greatest value."""
    greatest = max(max(values) for _, values in rows)
    magnitude = 10 ** math.floor(math.log10(max(greatest, 1) / 5))
    step = next(each * magnitude for each in (1, 2, 5, 10) if each * magnitude * 5 >= greatest)
    return [number * step for number in range(6)]
