"""Of two answers to a prompt one is preferred: DPO and its kin, with and without a reference model.

The reference is the model as it was before its first step. Its log-probabilities are computed once and kept, so that no
second model is held in memory and every strategy and ZeRO stage serves alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from peftkit.tasks.base import IGNORED, Batch, Features, Record, Row, RowError, Task
from peftkit.tasks.next_token import shifted, stack
from peftkit.tasks.pairs import COLUMNS, answers_of, desired, pair_of, pieces_of
from peftkit.tasks.positions import Wanted, token_losses

if TYPE_CHECKING:
    from torch import Tensor

UNPAIRED = ("prompt", "completion", "label")


class Preference(Task, name="preference"):
    """Learn to prefer `chosen` to `rejected`, as answers to `prompt` (or as whole conversations)."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "preference_accuracy")
    lengths: ClassVar[tuple[str, ...]] = ("max_length",)
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        **COLUMNS,
        "completion": ("completion", "response"),
        "label": ("label", "desirable"),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("chosen", "rejected"), UNPAIRED)

    late: ClassVar[tuple[str, ...]] = (
        *("beta", "reference_free", "label_smoothing", "gamma", "sft", "desirable", "undesirable"),
    )

    loss_type: Literal["dpo", "ipo", "hinge", "simpo", "orpo", "kto"] = "dpo"
    """dpo (Rafailov et al., 2023), ipo (Azar et al., 2023), hinge (SLiC, Zhao et al., 2023); without a reference: simpo (Meng
    et al., 2024), orpo (Hong et al., 2024); kto (Ethayarajh et al., 2024) also reads rows of one answer and a `label`; it
    measures from the mean log-ratio of the step's own answers, where the paper takes mismatched pairs."""
    beta: PositiveFloat = 0.1
    """How closely the model is held to the reference; of orpo the weight of its odds ratio. simpo wants about 2."""
    reference_free: bool = False
    """dpo, ipo and hinge without a reference: every answer counts as equally likely there."""
    label_smoothing: NonNegativeFloat = 0
    """dpo: the share of pairs that are thought to be the wrong way round (cDPO, Mitchell, 2023)."""
    gamma: NonNegativeFloat = 0.5
    """simpo: by how much the chosen answer's reward should lead."""
    sft: NonNegativeFloat = 0
    """Weight of learning the chosen answer as well, by its mean loss per token."""
    desirable: PositiveFloat = 1
    """kto: weight of the answers that are wanted."""
    undesirable: PositiveFloat = 1
    """kto: weight of those that are not."""

    @property
    def varies(self) -> str:
        return "reads two answers for a row"

    def model_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    @property
    def needs_reference(self) -> bool:
        return self.loss_type not in ("simpo", "orpo") and not self.reference_free

    @property
    def reference(self) -> tuple[str, ...]:
        if not self.needs_reference:
            return ()
        return ("reference",) if self.loss_type == "kto" else ("reference_chosen", "reference_rejected")

    def windows(self, row: Row, processor: Any, max_length: int, stride: int | None) -> list[Features]:
        """One pair; for kto each answer by itself."""
        if self.loss_type != "kto":
            return [self.encode(row, processor, max_length)]
        if row.get("chosen") is None:
            ids, labels = answers_of([(row.get("prompt"), row.get("completion"))], processor, max_length)[0]
            return [{"input_ids": ids, "labels": labels, "wanted": int(desired(row.get("label")))}]
        both = answers_of(pair_of(row), processor, max_length)
        return [
            {"input_ids": ids, "labels": labels, "wanted": wanted}
            for (ids, labels), wanted in zip(both, (1, 0), strict=True)
        ]

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        if row.get("chosen") is None and row.get("completion") is not None:
            raise RowError(
                f"one answer and no pair, which --task.loss_type {self.loss_type} needs; kto reads such rows"
            )
        (chosen, chosen_labels), (rejected, rejected_labels) = answers_of(pair_of(row), processor, max_length)
        return {
            "chosen_input_ids": chosen,
            "chosen_labels": chosen_labels,
            "rejected_input_ids": rejected,
            "rejected_labels": rejected_labels,
        }

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Pairs become twice as many sequences, (2 x pairs, positions): the chosen ones first."""
        import torch

        if self.loss_type == "kto":
            return stack(features, processor)
        halves = [
            {"input_ids": row[f"{side}_input_ids"], "labels": row[f"{side}_labels"]}
            for side in ("chosen", "rejected")
            for row in features
        ]
        known = [name for name in self.reference if name in features[0]]
        return stack(halves, processor) | {name: torch.tensor([row[name] for row in features]) for name in known}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def targets(self, batch: Batch) -> int:
        """Pairs; for kto answers."""
        return int(self._counted(batch).sum())

    def wanted(self, batch: Batch) -> Wanted:
        return Wanted(shifted(batch["labels"]), alike=False)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        logps, lengths = log_probabilities(outputs, batch["labels"])
        return (self._losses(logps, lengths, batch) * self._counted(batch)).sum()

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        logps, lengths = log_probabilities(outputs, batch["labels"])
        losses = self._losses(logps, lengths, batch).tolist()
        counted = [int(known) for known in self._counted(batch)]
        rewards = self._rewards(logps, lengths, batch).tolist()
        if self.loss_type == "kto":
            parts = zip(losses, counted, rewards, batch["wanted"].tolist(), strict=True)
            return [{"loss": loss, "targets": n, "reward": reward, "wanted": kind} for loss, n, reward, kind in parts]
        pairs = zip(losses, counted, rewards[: len(losses)], rewards[len(losses) :], strict=True)
        return [
            {"loss": loss, "targets": n, "chosen_reward": one, "rejected_reward": other, "margin": one - other}
            for loss, n, one, other in pairs
        ]

    def judge(self, row: Row, records: Sequence[Record], processor: Any) -> Record:
        if "wanted" not in records[0]:
            return records[0]
        sums = {name: sum(record[name] for record in records) for name in ("loss", "targets")}
        reward = {record["wanted"]: record["reward"] for record in records}
        margin = reward[1] - reward[0] if len(reward) == 2 else None
        return {**sums, "chosen_reward": reward.get(1), "rejected_reward": reward.get(0), "margin": margin}

    def reference_values(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Summed log-probabilities of the answers."""
        logps, _ = log_probabilities(outputs, batch["labels"])
        return dict(zip(self.reference, logps.chunk(len(self.reference)), strict=True))

    @property
    def looks_ahead(self) -> bool:
        return self.loss_type == "kto"

    def ahead(self, outputs: Any, batch: Batch) -> tuple[Tensor, int]:
        """The summed log-ratios, whose mean over the step is the baseline that kto measures from."""
        logps, _ = log_probabilities(outputs, batch["labels"])
        return (self._ratios(logps, batch) * self._counted(batch)).sum(), self.targets(batch)

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        if self.loss_type == "kto":
            end = " [wanted]" if features["wanted"] else " [not wanted]"
            return [*pieces_of(features["input_ids"], features["labels"], processor), (end, False)]
        chosen, rejected = (
            pieces_of(features[f"{side}_input_ids"], features[f"{side}_labels"], processor)
            for side in ("chosen", "rejected")
        )
        return [*chosen, ("\n[rejected] ", False), *((text, False) for text, _ in rejected)]

    def conflicts(self, run: Any) -> Iterator[str]:
        yield from super().conflicts(run)
        given = self.model_fields_set - {"name"}
        own: dict[str, tuple[str, ...]] = {
            "label_smoothing": ("dpo",),
            "gamma": ("simpo",),
            "desirable": ("kto",),
            "undesirable": ("kto",),
        }
        own |= {"reference_free": ("dpo", "ipo", "hinge")}
        for field, kinds in own.items():
            if field in given and self.loss_type not in kinds and getattr(self, field) != _default(field):
                yield f"--task.{field} is of --task.loss_type {' or '.join(kinds)}, not of {self.loss_type}"
        if self.label_smoothing >= 0.5:
            yield f"--task.label_smoothing {self.label_smoothing:g}: under 0.5, or the pairs say nothing"

    def _counted(self, batch: Batch) -> Tensor:
        """Which pairs (for kto: answers) have targets."""
        known = (batch["labels"][:, 1:] != IGNORED).any(1)
        return known if self.loss_type == "kto" else known.chunk(2)[0]

    def _losses(self, logps: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        """One loss a pair (for kto: an answer), fp32."""
        from torch.nn.functional import logsigmoid, relu

        if self.loss_type == "kto":
            return self._kto(logps, batch)
        chosen, rejected = (logps / lengths).chunk(2)
        first, second = self._ratios(logps, batch).chunk(2)
        lead = first - second
        if self.loss_type == "dpo":
            smooth = self.label_smoothing
            losses = -(1 - smooth) * logsigmoid(self.beta * lead) - smooth * logsigmoid(-self.beta * lead)
        elif self.loss_type == "ipo":
            each = (logps - self._reference(logps, batch)) / lengths
            losses = (each.chunk(2)[0] - each.chunk(2)[1] - 1 / (2 * self.beta)) ** 2
        elif self.loss_type == "hinge":
            losses = relu(1 - self.beta * lead)
        elif self.loss_type == "simpo":
            losses = -logsigmoid(self.beta * (chosen - rejected) - self.gamma)
        else:
            losses = -chosen - self.beta * logsigmoid(log_odds(chosen) - log_odds(rejected))
        return losses - self.sft * chosen if self.sft else losses

    def _kto(self, logps: Tensor, batch: Batch) -> Tensor:
        import torch

        ratios = self._ratios(logps, batch)
        baseline = batch["ahead"].clamp(min=0) if "ahead" in batch else ratios.new_zeros(())
        wanted = batch["wanted"].bool()
        gain = torch.sigmoid(self.beta * torch.where(wanted, ratios - baseline, baseline - ratios))
        return torch.where(wanted, self.desirable, self.undesirable) * (1 - gain)

    def _rewards(self, logps: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        if self.loss_type in ("simpo", "orpo"):
            return self.beta * logps / lengths
        return self.beta * self._ratios(logps, batch)

    def _ratios(self, logps: Tensor, batch: Batch) -> Tensor:
        return logps - self._reference(logps, batch)

    def _reference(self, logps: Tensor, batch: Batch) -> Tensor:
        """The reference's log-probabilities; zero without one, or before they were computed."""
        import torch

        names = [name for name in self.reference if name in batch]
        return torch.cat([batch[name] for name in names]) if names else torch.zeros_like(logps)


def log_probabilities(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each sequence's log-probability summed over its targets, in fp32, and its number of targets (at least 1)."""
    wanted = shifted(labels)
    keep = wanted != IGNORED
    losses = token_losses(outputs, wanted)
    # Not index_add_ in place: where a batch has no target this must still have a graph.
    summed = losses.new_zeros(len(labels)).index_add(0, keep.nonzero()[:, 0], -losses)
    return summed + 0 * losses[:0].sum(), keep.sum(1).clamp(min=1)


def log_odds(mean: Tensor) -> Tensor:
    """log(p / (1 - p)) of the mean probability p of a token, given as its logarithm."""
    import torch

    mean = mean.clamp(max=-1e-6)  # a sequence without targets, or one that is certain, has infinite odds
    return mean - torch.log(-torch.expm1(mean))


def _default(field: str) -> Any:
    return Preference.model_fields[field].default
