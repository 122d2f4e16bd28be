"""Losses of classes, of several labels and of numbers, each summed over its targets in fp32.

Weights of classes change what a target costs, and not how many there are: the step's loss is still divided by the number
of its targets (torch's mean divides by the weights of the rows that happen to be together). With balanced weights the mean
weight of the training targets is 1, so both agree over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from peftkit.tasks.base import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-6
"""The least that a focal factor's base can be: below, the gradient of a power under one has no bound."""


def summed(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    weights: Sequence[float] | None = None,
    focal: float = 0.0,
) -> Tensor:
    """Cross-entropy of `logits` (..., classes) and `labels` (...), of which those that are IGNORED do not count.

    `focal` is the gamma of Lin et al., 2017 (https://arxiv.org/abs/1708.02002): what is right already counts less.
    """
    from torch.nn.functional import cross_entropy

    keep = labels != IGNORED
    logits, labels = logits[keep].float(), labels[keep]
    weight = None if weights is None else logits.new_tensor(weights)
    losses = cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing, reduction="none")
    if focal:
        right = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        losses = losses * (-right.expm1()).clamp(min=SMALLEST) ** focal
    return losses.sum()


def summed_several(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    weights: Sequence[float] | None = None,
    focal: float = 0.0,
) -> Tensor:
    """Binary cross-entropy of each label by itself: `labels` (rows, classes) are 0, 1 or IGNORED.

    `weights` are those of the rows that have a label (`pos_weight`); smoothing draws both answers towards a half.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

    keep = labels != IGNORED
    logits = logits.float()
    wanted = labels.clamp(min=0).float()
    weight = None if weights is None else logits.new_tensor(weights)
    soft = wanted * (1 - smoothing) + smoothing / 2
    losses = binary_cross_entropy_with_logits(logits, soft, pos_weight=weight, reduction="none")
    if focal:
        right = logsigmoid(logits * (2 * wanted - 1))
        losses = losses * (-right.expm1()).clamp(min=SMALLEST) ** focal
    return losses[keep].sum()


def summed_distance(
    numbers: Tensor, wanted: Tensor, kind: Literal["mse", "mae", "huber"] = "mse", delta: float = 1.0
) -> Tensor:
    """What it costs to be off, over all values that are known: `wanted` is NaN where one is not."""
    from torch.nn.functional import huber_loss, l1_loss, mse_loss

    keep = ~wanted.isnan()
    numbers, wanted = numbers[keep].float(), wanted[keep].float()
    if kind == "huber":
        return huber_loss(numbers, wanted, reduction="sum", delta=delta)
    return (mse_loss if kind == "mse" else l1_loss)(numbers, wanted, reduction="sum")


def balanced(counts: Mapping[str, int]) -> dict[str, float]:
    """n / (k * count) for the k labels that occur, n times in all; 1 for one that does not."""
    there = [count for count in counts.values() if count]
    return {label: sum(there) / (len(there) * count) if count else 1.0 for label, count in counts.items()}


def balanced_several(counts: Mapping[str, int], rows: int) -> dict[str, float]:
    """Rows without a label by rows with it: both weigh the same then; 1 for a label that no row or every row has."""
    return {label: (rows - count) / count if 0 < count < rows else 1.0 for label, count in counts.items()}
