"""How often the better of two answers has the higher reward, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from peftkit.metrics.base import Record
from peftkit.metrics.tally import Tally, share

MEANS = ("margin", "chosen_reward", "rejected_reward")


class PreferenceAccuracy(Tally, name="preference_accuracy"):
    """Share of the pairs whose chosen answer has the higher reward (a tie counts half), with the mean rewards and margin."""

    needs: ClassVar[tuple[str, ...]] = ("margin",)

    def count(self, record: Record) -> Mapping[Any, float]:
        margin = record["margin"]
        if margin is None:
            return {}
        right = 0.5 if margin == 0 else float(margin > 0)
        known = {name: value for name in MEANS if (value := record.get(name)) is not None}
        return {"pairs": 1, "right": right, **known, **{("known", name): 1 for name in known}}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        known = {name: rows for name in MEANS if (rows := sums.get(("known", name)))}
        means = {f"{self.name}/{name}": sums.get(name, 0) / rows for name, rows in known.items()}
        return {self.name: share(sums.get("right", 0), sums.get("pairs", 0)), **means}
