"""How far predicted numbers are from the true ones, and how they go together; of rows with several numbers, the mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.metrics.base import LabelsAre, Metric, Record
from peftkit.metrics.tally import Tally, share

if TYPE_CHECKING:
    from numpy import ndarray

NEEDS = ("label", "prediction")


class Distance(Tally):
    """A mean over all values of what a difference costs."""

    needs: ClassVar[tuple[str, ...]] = NEEDS
    labels_are: ClassVar[tuple[LabelsAre, ...]] = ("numbers",)
    higher_is_better: ClassVar[bool] = False

    def count(self, record: Record) -> Mapping[Any, float]:
        if record["label"] is None:
            return {}
        pairs = zip(values(record["label"]), values(record["prediction"]), strict=True)
        costs = [self.cost(said - true) for true, said in pairs]
        return {"cost": math.fsum(costs), "values": len(costs)}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        return {self.name: share(sums.get("cost", 0), sums.get("values", 0))}

    def cost(self, difference: float) -> float:
        """What it costs to be off by so much."""
        raise NotImplementedError


class MeanAbsoluteError(Distance, name="mae"):
    """Mean absolute difference."""

    def cost(self, difference: float) -> float:
        return abs(difference)


class MeanSquaredError(Distance, name="mse"):
    """Mean squared difference: a large one counts for more."""

    def cost(self, difference: float) -> float:
        return difference * difference


class OfColumns(Metric):
    """The mean over the columns of a number that a whole column has."""

    needs: ClassVar[tuple[str, ...]] = NEEDS
    labels_are: ClassVar[tuple[LabelsAre, ...]] = ("numbers",)

    def compute(self, records: Sequence[Record]) -> dict[str, float]:
        import numpy as np

        known = [record for record in records if record["label"] is not None]
        if not known:
            return {self.name: math.nan}
        true, said = (np.array([values(record[name]) for record in known], dtype=float).T for name in NEEDS)
        found = [self.column(*pair) for pair in zip(true, said, strict=True)]
        return {self.name: math.fsum(found) / len(found)}

    def column(self, true: ndarray, said: ndarray) -> float:
        """The number of one column."""
        raise NotImplementedError


class R2(OfColumns, name="r2"):
    """Share of the spread that is explained: 1 is perfect, 0 as good as always saying the mean, below it worse.

    Where all true values are the same there is no spread: 1 if all are hit, else 0. One row alone gives NaN.
    """

    def column(self, true: ndarray, said: ndarray) -> float:
        if len(true) < 2:
            return math.nan
        left, spread = float(((true - said) ** 2).sum()), float(((true - true.mean()) ** 2).sum())
        return 1 - left / spread if spread else float(left == 0)


class Pearson(OfColumns, name="pearson"):
    """Correlation of true and predicted values, from -1 to 1; NaN where one of them does not vary."""

    def column(self, true: ndarray, said: ndarray) -> float:
        # Rounding may leave some spread around the mean of equal values.
        if len(true) < 2 or (true == true[0]).all() or (said == said[0]).all():
            return math.nan
        a, b = true - true.mean(), said - said.mean()
        return float((a @ b) / math.sqrt(float(a @ a) * float(b @ b)))


class Spearman(Pearson, name="spearman"):
    """Correlation of the ranks of true and predicted values, from -1 to 1: whether larger is said of what is larger."""

    def column(self, true: ndarray, said: ndarray) -> float:
        import numpy as np
        from scipy.stats import rankdata

        if np.isnan(true).any() or np.isnan(said).any():
            return math.nan
        return super().column(rankdata(true), rankdata(said))


def values(label: Any) -> list[float]:
    """A row's numbers, one or several."""
    return list(label) if isinstance(label, (list, tuple)) else [label]
