"""Which positions of a model's output a task reads, told to the output layer, and what the output layer makes of them.

    with reading(task.wanted(batch)) as asked:
        outputs = model(**task.inputs(batch))
    task.loss(asked.answer(outputs), batch)

A head that knows of it (`kernels.head`) computes those positions alone; a plain one computes all, and the task selects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from peftkit.tasks.base import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Wanted:
    """What a task reads of the logits of a batch."""

    labels: Tensor
    """(rows, positions): what the logits at each position shall predict; IGNORED where they are not read."""
    logits: bool = False
    """Whether the logits are read themselves, and not only each label's loss."""
    alike: bool = True
    """Whether each label's loss will weigh the same, as in a sum: then the head's own gradient costs no second pass."""


@dataclass(frozen=True)
class TokenLosses:
    """The cross-entropy of every label that is read, row after row: (targets,), fp32, with a graph in training."""

    losses: Tensor
    correct: Tensor | None
    """(targets,): whether the label was the likeliest; only without gradients."""


@dataclass(frozen=True)
class TokenLogits:
    """The logits at every position that is read, row after row: (targets, vocabulary)."""

    logits: Tensor


@dataclass
class Asked:
    """One forward pass's question to the output layer, and what it has answered."""

    wanted: Wanted
    answered: Literal["", "losses", "logits"] = ""
    losses: Tensor | None = None
    """Where they did not come back as the model's logits."""
    correct: Tensor | None = None

    @cached_property
    def at(self) -> Tensor:
        """(targets,): the positions that are read, counted through all rows."""
        return (self.wanted.labels != IGNORED).flatten().nonzero()[:, 0]

    @cached_property
    def labels(self) -> Tensor:
        """(targets,): their labels."""
        return self.wanted.labels.flatten()[self.at]

    def select(self, hidden: Tensor) -> Tensor:
        """(targets, width): of (rows, positions, width) what is read; of what was selected already, (1, targets, width), all."""
        if hidden.shape[:2] == (1, len(self.at)):
            return hidden[0]
        if hidden.shape[:2] != self.wanted.labels.shape:
            raise RuntimeError(
                f"hidden states of {tuple(hidden.shape[:2])} for labels of {tuple(self.wanted.labels.shape)}"
            )
        return hidden.flatten(0, 1)[self.at]

    def answer(self, outputs: Any) -> Any:
        """What the task reads: the model's outputs, unless the head has reduced them."""
        if self.answered == "logits":
            return TokenLogits(outputs.logits[0])
        if self.answered == "losses":
            return TokenLosses(outputs.logits if self.losses is None else self.losses, self.correct)
        return outputs


_asked: ContextVar[Asked | None] = ContextVar("asked", default=None)


@contextmanager
def reading(wanted: Wanted | None) -> Iterator[Asked | None]:
    """Let the forward pass inside know what is wanted of it; None wants everything."""
    asked = None if wanted is None else Asked(wanted)
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


def asked_now() -> Asked | None:
    """What the pass that runs is asked for; None outside of one: all logits."""
    return _asked.get()


def token_logits(outputs: Any, labels: Tensor) -> Tensor:
    """(targets, vocabulary): the logits of the positions whose label in `labels` (rows, positions) is to be predicted."""
    if isinstance(outputs, TokenLogits):
        return outputs.logits
    found: Tensor = outputs.logits[labels != IGNORED]
    return found


def token_losses(outputs: Any, labels: Tensor) -> Tensor:
    """(targets,): the cross-entropy of each of those labels, fp32, with a graph."""
    from torch.nn.functional import cross_entropy

    if isinstance(outputs, TokenLosses):
        return outputs.losses
    # Selected before anything is computed: no fp32 copy is made of the other positions.
    return cross_entropy(token_logits(outputs, labels).float(), labels[labels != IGNORED], reduction="none")


def token_records(outputs: Any, labels: Tensor) -> list[dict[str, Any]]:
    """A record a row: its summed loss, its targets, and how many of them were the likeliest token."""
    from torch import split

    losses = token_losses(outputs, labels).detach()
    if isinstance(outputs, TokenLosses) and outputs.correct is not None:
        correct = outputs.correct
    else:
        correct = token_logits(outputs, labels).detach().argmax(-1) == labels[labels != IGNORED]
    counts = (labels != IGNORED).sum(1).tolist()
    rows = zip(split(losses, counts), split(correct, counts), counts, strict=True)
    return [{"loss": float(loss.sum()), "targets": count, "correct": int(right.sum())} for loss, right, count in rows]
