"""A number for every answer, higher for the preferred one of each pair: a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat

from peftkit.tasks.base import IGNORED, Batch, Features, Record, Row, RowError, Task
from peftkit.tasks.labels import number
from peftkit.tasks.next_token import stack
from peftkit.tasks.pairs import COLUMNS, answers_of, pair_of, pieces_of

if TYPE_CHECKING:
    from torch import Tensor


class Reward(Task, name="reward"):
    """Learn a score by which `chosen` comes before `rejected` (Bradley and Terry, 1952; Ouyang et al., 2022)."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "preference_accuracy")
    lengths: ClassVar[tuple[str, ...]] = ("max_length",)
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        **COLUMNS,
        "margin": ("margin",),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("chosen", "rejected"),)

    late: ClassVar[tuple[str, ...]] = ("centre",)

    centre: NonNegativeFloat = 0
    """Weight of keeping each pair's rewards around zero (Eisenstein et al., 2023); 0.01 is common."""

    @property
    def varies(self) -> str:
        return "reads two answers for a row"

    def model_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        (chosen, _), (rejected, _) = answers_of(pair_of(row), processor, max_length)
        margin = number(row.get("margin") or 0)
        if margin is None:
            raise RowError("'margin' is no number")
        return {"chosen_input_ids": chosen, "rejected_input_ids": rejected, "margin": margin}

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """(2 x pairs, positions), the chosen ones first; `labels` says which pairs count."""
        import torch

        halves = [{"input_ids": row[f"{side}_input_ids"]} for side in ("chosen", "rejected") for row in features]
        margins = torch.tensor([row["margin"] for row in features])
        return stack(halves, processor) | {"margin": margins, "labels": torch.ones(len(features), dtype=torch.long)}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return (self._losses(outputs, batch) * (batch["labels"] != IGNORED)).sum()

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        losses = self._losses(outputs, batch).tolist()
        chosen, rejected = (half.tolist() for half in outputs.logits.float()[:, 0].chunk(2))
        known = (batch["labels"] != IGNORED).long().tolist()
        return [
            {"loss": loss, "targets": n, "chosen_reward": one, "rejected_reward": other, "margin": one - other}
            for loss, n, one, other in zip(losses, known, chosen, rejected, strict=True)
        ]

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        chosen, rejected = (features[f"{side}_input_ids"] for side in ("chosen", "rejected"))
        return [
            *pieces_of(chosen, chosen, processor),
            ("\n[rejected] ", False),
            (processor.decode(rejected), False),
        ]

    def _losses(self, outputs: Any, batch: Batch) -> Tensor:
        from torch.nn.functional import logsigmoid

        chosen, rejected = outputs.logits.float()[:, 0].chunk(2)
        losses = -logsigmoid(chosen - rejected - batch["margin"])
        return losses + self.centre * (chosen + rejected) ** 2 if self.centre else losses
