"""Least squares for costs: coefficients that predict what was measured, with their error. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

FOLDS = 4


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: what is known beforehand, by name, and the cost that was seen (above 0)."""

    label: str
    features: Mapping[str, float]
    cost: float


@dataclass(frozen=True, slots=True)
class Model:
    """cost = sum of coefficient × feature."""

    coefficients: Mapping[str, float]

    def predict(self, features: Mapping[str, float]) -> float:
        return sum(value * features[name] for name, value in self.coefficients.items())

    def error(self, point: Point) -> float:
        """How far off it is, as a share of what was seen: 0.1 for 10 %."""
        return abs(self.predict(point.features) / point.cost - 1)


@dataclass(frozen=True, slots=True)
class Fit:
    """held_out: the error of each point under a model that was fitted without it."""

    model: Model
    held_out: Mapping[str, float]

    @property
    def typical_error(self) -> float:
        return median(self.held_out.values())

    @property
    def worst_error(self) -> float:
        return max(self.held_out.values())


def fit(points: Sequence[Point]) -> Fit:
    """The model of all points; its error is that of FOLDS models, each without some of them.

    Every FOLDS-th point is held out together, in the order given. Needs more points than features
    after that.
    """
    held_out: dict[str, float] = {}
    for fold in range(FOLDS):
        rest = [point for number, point in enumerate(points) if number % FOLDS != fold]
        model = least_squares(rest)
        held_out.update((point.label, model.error(point)) for point in points[fold::FOLDS])
    return Fit(least_squares(points), held_out)


def least_squares(points: Sequence[Point]) -> Model:
    """The coefficients, none below 0, with the least sum of squared relative errors.

    Relative, so that cheap operations count as much as dear ones. A cost below 0 means nothing: the
    feature with the lowest negative coefficient is left out (0), and the rest fitted again.
    """
    names = list(points[0].features)
    kept = list(names)
    while kept:
        rows = [[point.features[name] / point.cost for name in kept] for point in points]
        found = _solve_normal(rows)
        lowest = min(range(len(kept)), key=found.__getitem__)
        if found[lowest] >= 0:
            fitted = dict(zip(kept, found, strict=True))
            return Model({name: fitted.get(name, 0.0) for name in names})
        del kept[lowest]
    raise ValueError("no feature has a cost above 0")


def _solve_normal(rows: Sequence[Sequence[float]]) -> list[float]:
    """The x with the least |rows · x - 1|², by elimination of the normal equations."""
    size = len(rows[0])
    matrix = [
        [*(sum(row[i] * row[j] for row in rows) for j in range(size)), sum(row[i] for row in rows)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(matrix[row][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        if not matrix[i][i]:
            raise ValueError("the points do not tell the features apart")
        for other in range(size):
            if other != i:
                share = matrix[other][i] / matrix[i][i]
                matrix[other] = [
                    value - share * own for value, own in zip(matrix[other], matrix[i], strict=True)
                ]
    return [matrix[i][size] / matrix[i][i] for i in range(size)]
