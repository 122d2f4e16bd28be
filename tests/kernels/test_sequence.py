"""Two processes that share rows learn what one learns from whole rows (CHECKS share one launch, tests/engine/together.py)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from peftkit.config.speed import Speed
from peftkit.engine.loop import forward
from peftkit.engine.world import World
from peftkit.errors import ConfigError
from peftkit.kernels.quicken import quicken
from peftkit.kernels.sequence import own_labels, share_rows
from peftkit.strategies import Lora
from peftkit.tasks import Task
from peftkit.tasks.base import IGNORED
from tests.conftest import Together
from tests.tiny import tiny

TASK: Task = Task.model_validate("causal_lm")
SHORT = 5


def batch_of(length: int, vocabulary: int = 300) -> dict[str, Tensor]:
    """Three rows, the second a short one; some labels are no targets, and none in the first half of the last."""
    drawn = torch.Generator().manual_seed(length)
    ids = torch.randint(5, vocabulary, (3, length), generator=drawn)
    mask = torch.ones_like(ids)
    mask[1, SHORT:] = 0
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[0, :3] = IGNORED
    labels[2, : length // 2 + 1] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def learnt(model: nn.Module, batch: dict[str, Tensor], targets: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss as a share of the targets, and its gradients."""
    model.zero_grad()
    loss = TASK.loss(forward(model, TASK, batch), batch) / targets
    loss.backward()
    return loss.detach(), {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}


def as_whole_rows(world: World, folder: Path, model: Any, length: int, quick: bool = False) -> None:
    batch = batch_of(length)
    targets = TASK.targets(batch)
    loss, grads = learnt(model, batch, targets)
    scores = model.eval()(input_ids=batch["input_ids"]).logits.detach()
    model.train()
    if quick:
        quicken(model, TASK, Speed(unpad="off"))
    hung = share_rows(model, 2, world.process, world.processes)
    mine = own_labels(batch, 2, world.process)
    assert world.sum(TASK.targets(mine)) == [targets]
    part, found = learnt(model, mine, targets)
    dist.all_reduce(part)
    assert torch.allclose(part, loss, atol=1e-5)
    assert found.keys() == grads.keys()
    for name, grad in found.items():
        dist.all_reduce(grad)
        assert torch.allclose(grad, grads[name], atol=1e-5), name
    assert torch.allclose(model.eval()(input_ids=batch["input_ids"]).logits, scores, atol=1e-5), "rows of its own"
    hung.remove()
    model.train()
    assert torch.allclose(learnt(model, batch, targets)[0], loss, atol=1e-6), "as it was"


def checkpointed(world: World, folder: Path) -> None:
    model: Any = tiny("llama")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    as_whole_rows(world, folder, model, 14)


def adapted(world: World, folder: Path) -> None:
    torch.manual_seed(0)
    model = Lora(rank=4).adapt(tiny("llama"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    as_whole_rows(world, folder, model, 13, quick=True)


def odd_heads(world: World, folder: Path) -> None:
    """One key head for all queries: each process has a copy of it."""
    as_whole_rows(world, folder, tiny("llama", num_key_value_heads=1), 12)


def too_few_heads(world: World, folder: Path) -> None:
    with pytest.raises(ConfigError, match="1 attention heads cannot be dealt"):
        share_rows(tiny("llama", num_attention_heads=1, num_key_value_heads=1), 2, world.process, world.processes)


CHECKS: dict[str, Any] = {
    f"{family}-{length}": partial(
        lambda world, folder, family, length: as_whole_rows(world, folder, tiny(family), length),
        family=family,
        length=length,
    )
    for family, length in (("llama", 16), ("llama", 11), ("qwen", 12), ("gpt2", 9), ("gemma", 10), ("llama", 7))
}
CHECKS |= {"checkpointed": checkpointed, "lora": adapted, "one-key-head": odd_heads, "too-few-heads": too_few_heads}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_every_label_is_learnt_by_one_process(processes: int) -> None:
    labels = batch_of(11)["labels"]
    own = [own_labels({"labels": labels}, processes, process)["labels"] for process in range(processes)]
    counted = torch.stack([part != IGNORED for part in own]).sum(0)
    assert torch.equal(counted[:, 1:], (labels != IGNORED)[:, 1:].long())
    assert not counted[:, 0].any(), "nothing predicts the first"


def test_layers_that_look_elsewhere_are_refused() -> None:
    with pytest.raises(ConfigError, match="rows cannot be shared"):
        share_rows(tiny("t5"), 2, 0, 2)
