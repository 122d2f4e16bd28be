"""R-Drop's loss is the authors' formula, as a sum over targets: however a batch is split, padded or ordered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers.modeling_outputs import CausalLMOutput, QuestionAnsweringModelOutput, SequenceClassifierOutput

from peftkit.engine.loop import forward
from peftkit.errors import ConfigError
from peftkit.strategies.lora import Lora
from peftkit.tasks import Task
from peftkit.tasks.base import Batch
from peftkit.tasks.r_drop import RDrop, check_dropout
from tests.tiny import tiny

ALPHA = 3.0
LABELS = torch.tensor([[-100, -100, 7, 8, 9], [-100, 4, 5, -100, -100]])


def task_of(name: str) -> Task:
    task: Task = Task.model_validate({"name": name})
    return task


def authors(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """From the logits of the targets: half of both losses, and alpha times half of both divergences; summed."""
    loss = (cross_entropy(first, labels, reduction="sum") + cross_entropy(second, labels, reduction="sum")) / 2
    one, other = first.log_softmax(-1), second.log_softmax(-1)
    there = kl_div(other, one, reduction="sum", log_target=True)
    back = kl_div(one, other, reduction="sum", log_target=True)
    return loss + ALPHA * (there + back) / 2


def test_next_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 11)
    found = RDrop(task_of("chat"), ALPHA).loss(CausalLMOutput(logits=logits), {"labels": LABELS})
    counted = [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]  # the position before each label
    first, second = (torch.stack([logits[row + half, at] for row, at in counted]) for half in (0, 2))
    torch.testing.assert_close(found, authors(first, second, torch.tensor([7, 8, 9, 4, 5])))
    assert RDrop(task_of("chat"), ALPHA).targets({"labels": LABELS}) == 5


def test_one_label_a_row_and_a_row_without_one() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.tensor([3, -100, 0])
    found = RDrop(task_of("sequence_classification"), ALPHA).loss(
        SequenceClassifierOutput(logits=logits), {"labels": labels}
    )
    torch.testing.assert_close(found, authors(logits[[0, 2]], logits[[3, 5]], torch.tensor([3, 0])))


def test_what_is_no_choice_is_in_no_divergence() -> None:
    """A question of two choices costs the same beside one of three."""
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, requires_grad=True), torch.tensor([1, 2])
    batch = {"labels": labels, "there": torch.tensor([[True, True, False], [True, True, True]])}
    task = RDrop(task_of("multiple_choice"), ALPHA)
    found = task.loss(SequenceClassifierOutput(logits=logits), batch)
    expected = authors(logits[[0], :2], logits[[2], :2], labels[:1]) + authors(logits[[1]], logits[[3]], labels[1:])
    torch.testing.assert_close(found, expected)
    assert torch.autograd.grad(found, logits)[0].isfinite().all()


def test_it_is_the_sum_of_its_parts_and_has_a_gradient() -> None:
    logits = torch.randn(4, 5, 11, requires_grad=True)
    task = RDrop(task_of("causal_lm"), ALPHA)
    whole = task.loss(CausalLMOutput(logits=logits), {"labels": LABELS})
    parts = [task.loss(CausalLMOutput(logits=logits[[row, row + 2]]), {"labels": LABELS[[row]]}) for row in (0, 1)]
    torch.testing.assert_close(whole, parts[0] + parts[1])
    (gradient,) = torch.autograd.grad(whole, logits)
    assert gradient.isfinite().all() and gradient[0, 1].abs().sum() > 0 and gradient[0, 0].abs().sum() == 0
    nothing = task.loss(CausalLMOutput(logits=logits), {"labels": torch.full_like(LABELS, -100)})
    assert nothing == 0 and nothing.requires_grad


def test_where_both_passes_agree_it_is_the_tasks_own_loss() -> None:
    """A real model without dropout, and one with it."""
    batch: Batch = {"input_ids": LABELS.clamp(min=1), "attention_mask": torch.ones_like(LABELS), "labels": LABELS}
    task = task_of("chat")
    same, different = tiny("llama"), tiny("llama", attention_dropout=0.5)
    expected = task.loss(forward(same, task, batch), batch)
    torch.testing.assert_close(loss_of(same, RDrop(task, ALPHA), batch), expected)
    alone = loss_of(different, RDrop(task, 0.0), batch)
    assert loss_of(different, RDrop(task, 1e3), batch) > alone + 1


def loss_of(model: Any, task: Any, batch: Batch) -> Tensor:
    torch.manual_seed(0)
    loss: Tensor = task.loss(forward(model, task, batch), batch)
    return loss


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (QuestionAnsweringModelOutput(start_logits=torch.ones(2, 3), end_logits=torch.ones(2, 3)), torch.ones(1)),
        (SequenceClassifierOutput(logits=torch.ones(2, 3)), torch.ones(1, 3)),
    ],
)
def test_a_task_without_one_class_a_target_is_refused(outputs: Any, labels: Tensor) -> None:
    class Other(Task):
        def loss(self, outputs: Any, batch: Batch) -> Tensor:
            return torch.zeros(())

    with pytest.raises(ConfigError, match=r"--regularize.r_drop compares two predictions of one class"):
        RDrop(Other.model_construct(), ALPHA).loss(outputs, {"labels": labels})


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {"attention_dropout": 0.1}), ("bert", {"hidden_dropout_prob": 0.1}), ("bart", {"dropout": 0.1})],
)
def test_a_model_in_which_nothing_drops_out_is_refused(family: str, settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="nothing drops out in this model"):
        check_dropout(tiny(family))
    check_dropout(tiny(family, **settings))
    check_dropout(Lora(rank=2, dropout=0.1).adapt(tiny(family)))
