"""Two passes with other dropout, which shall agree: R-Drop (Wu et al., 2021, https://arxiv.org/abs/2106.14448)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.errors import ConfigError
from peftkit.tasks.base import IGNORED, Batch, Task
from peftkit.tasks.next_token import NextToken, shifted
from peftkit.tasks.positions import token_logits

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class RDrop:
    """What the loop asks of a task, with every row in the batch twice.

    The loss of a target with the two predictions P and Q is the mean of its two losses and
    `alpha * 1/2 (KL(P||Q) + KL(Q||P))`, as the authors compute it (in the paper's formula the two losses are added: this is
    half of that with twice the alpha). It is summed over the targets, so it does not depend on how a step is split.
    """

    task: Task
    alpha: float

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {name: _twice(value) for name, value in self.task.inputs(batch).items()}

    def targets(self, batch: Batch) -> int:
        return self.task.targets(batch)

    def wanted(self, batch: Batch) -> None:
        """All logits: whole distributions are compared."""

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        if "logits" not in outputs:
            raise ConfigError(f"--regularize.r_drop {why_not(self.task)}")
        first, second = halves(outputs)
        both = self.task.loss(first, batch) + self.task.loss(second, batch)
        return both / 2 + self.alpha * disagreement(self._counted(first, batch), self._counted(second, batch))

    def _counted(self, outputs: Any, batch: Batch) -> Tensor:
        """The logits of the targets, (targets, classes)."""
        labels = batch["labels"]
        if isinstance(self.task, NextToken):
            return token_logits(outputs, shifted(labels))
        if labels.is_floating_point() or labels.shape != outputs.logits.shape[:-1]:
            raise ConfigError(f"--regularize.r_drop {why_not(self.task)}")
        logits: Tensor = outputs.logits
        if "there" in batch:  # a question with fewer choices than others in the batch
            logits = logits.masked_fill(~batch["there"], float("-inf"))
        return logits[labels != IGNORED]


def why_not(task: Task) -> str:
    return f"compares two predictions of one class for each target, and --task {task.name} predicts something else; leave it out"


def check_dropout(model: nn.Module) -> None:
    """Raise ConfigError if two passes of the model cannot differ."""
    named = (item for module in model.modules() for item in _chances(module))
    if not any(chance > 0 for chance in named):
        raise ConfigError(
            "--regularize.r_drop compares two passes with other dropout, and nothing drops out in this model;"
            " give --model.dropout 0.1, or with an adapter --strategy.dropout 0.1"
        )


def _chances(module: Any) -> list[float]:
    """The probabilities of dropout that a module keeps: as `p` in a layer of its own, or under a name that says so."""
    own = [module.p] if "dropout" in type(module).__name__.lower() and hasattr(module, "p") else []
    return own + [value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]


def halves(outputs: Any) -> tuple[Any, Any]:
    """The outputs of the rows, and those of their repetition. What is not a tensor by rows is in neither."""
    import torch

    rows = 2 * (len(outputs.logits) // 2)
    named = {
        name: value
        for name, value in outputs.items()
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == rows
    }
    first, second = ({name: value.chunk(2)[half] for name, value in named.items()} for half in (0, 1))
    return type(outputs)(**first), type(outputs)(**second)


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """`1/2 (KL(P||Q) + KL(Q||P))` of the two softmax distributions of each row of logits, summed over the rows, in fp32."""
    one, other = first.float().log_softmax(-1), second.float().log_softmax(-1)
    # A class that a model rules out (logit -inf) is ruled out by both, and adds nothing.
    terms = (one.exp() - other.exp()) * (one - other).masked_fill(one == other, 0)
    return terms.sum() / 2


def _twice(value: Any) -> Any:
    import torch

    return torch.cat([value, value]) if isinstance(value, torch.Tensor) else value
