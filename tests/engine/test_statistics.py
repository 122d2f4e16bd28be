"""BatchNorm's running statistics are the same on all processes, saved, resumed and exported; where it is frozen, nothing moves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification

from peftkit.engine.checkpoint import Progress, newest, read_result, read_trained, resume
from peftkit.engine.saver import save
from peftkit.engine.state import capture, load_weights
from peftkit.engine.statistics import hold_frozen, share_statistics, statistics
from peftkit.engine.world import World
from peftkit.errors import CheckpointError
from peftkit.flows.export import put_trained
from peftkit.run_folder import RunFolder
from peftkit.strategies import Strategy
from tests.conftest import Together
from tests.engine.odd import Odd, furthest, opened, rows_of, train

BASE = {"source": "here", "fingerprint": "abc"}
NAMES = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]


def normed(seed: int = 0) -> Odd:
    model = Odd(seed=seed)
    model.norm = nn.BatchNorm1d(7)  # type: ignore[assignment]
    return model


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in statistics(model).items()}


def saved_and_resumed(world: World, folder: Path, zero: str) -> None:
    """Each process has seen other rows; a checkpoint holds their mean, with which all go on, resumed or not."""
    engine = opened(normed(), zero, world)
    train(engine, range(3), world)
    own = copied(engine.model)
    everyones: list[Any] = [None] * world.processes
    dist.all_gather_object(everyones, own)
    saved_in = save(engine, RunFolder(folder), Progress(step=3), world, BASE)
    found = copied(engine.model)
    assert list(found) == NAMES
    for name in NAMES[:2]:
        assert not torch.equal(everyones[0][name], everyones[1][name])
        torch.testing.assert_close(found[name], (everyones[0][name] + everyones[1][name]) / 2)
    assert int(found[NAMES[2]]) == 3
    assert furthest({name: read_trained(saved_in)[name] for name in NAMES}, found) == 0
    train(engine, [3, 4], world)
    expected = capture(engine)
    engine.close()
    model = normed(seed=5)
    load_weights(model, read_trained(saved_in))
    again = opened(model, zero, world)
    saved = newest(RunFolder(folder), world)
    assert saved
    resume(again, saved, world)
    train(again, [3, 4], world)
    assert furthest(capture(again).weights, expected.weights) == 0
    again.close()


CHECKS: dict[str, Any] = {
    f"saved-and-resumed-{zero}": partial(saved_and_resumed, zero=zero) for zero in ("zero0", "zero2", "zero3")
}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)


@pytest.mark.launch
def test_they_move_as_in_plain_torch_and_the_mean_of_checkpoints_has_theirs(alone: World, tmp_path: Path) -> None:
    engine = opened(normed(), "zero2", alone)
    folders, seen = [], []
    for step in range(2):
        train(engine, [step], alone)
        folders.append(save(engine, RunFolder(tmp_path), Progress(step=step + 1), alone, BASE))
        seen.append(copied(engine.model))
    engine.close()
    plain = normed()
    plain(rows_of(0)[0])
    torch.testing.assert_close(seen[0], dict(plain.norm.named_buffers(prefix="norm")))
    mean = read_result(folders)
    torch.testing.assert_close(mean[NAMES[0]], (seen[0][NAMES[0]] + seen[1][NAMES[0]]) / 2)
    assert int(mean[NAMES[2]]) == 2


def resnet(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config).train()


def pixels() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))


STRATEGIES: dict[str, tuple[dict[str, Any], int]] = {
    "full": ({}, 8),
    "head_only": ({}, 0),
    "layerwise": ({"layers": ["1"]}, 5),
    "lora": ({"rank": 2, "target_modules": ["convolution"], "bias": "all"}, 0),
}
"""Settings, and how many of the eight norms train: an adapter file has no place for what moves."""


@pytest.mark.parametrize("name", STRATEGIES)
def test_frozen_means_frozen(name: str) -> None:
    """A frozen norm computes with the base's statistics and leaves them; the others follow the rows."""
    settings, moving = STRATEGIES[name]
    strategy: Strategy = Strategy.model_validate({"name": name, **settings})
    model = strategy.adapt(resnet(), fresh=["classifier.1.weight", "classifier.1.bias"]).train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    handles = hold_frozen(model)
    for _ in range(2):
        model(pixel_values=pixels())
    moved = {key for key, value in model.named_buffers() if not torch.equal(value, before[key])}
    assert moved == set(statistics(model)) and len(moved) == 3 * moving
    if not moving:
        found = model(pixel_values=pixels()).logits
        assert torch.equal(found, model.eval()(pixel_values=pixels()).logits)
    for handle in handles:
        handle.remove()
    model.train()(pixel_values=pixels())
    assert all(not torch.equal(value, before[key]) for key, value in model.named_buffers()), "it can be opened again"


@pytest.mark.launch
def test_an_engine_holds_the_frozen_ones_until_it_is_closed(alone: World) -> None:
    model = normed()
    model.norm.requires_grad_(False)
    before = {name: value.clone() for name, value in model.named_buffers()}
    engine = opened(model, "zero2", alone)
    train(engine, range(2), alone)
    engine.deepspeed.eval()
    engine.deepspeed.train()
    train(engine, [2], alone)
    assert furthest(dict(model.named_buffers()), before) == 0 and statistics(model) == {}
    engine.close()
    model.norm.requires_grad_(True)
    engine = opened(model, "zero2", alone, born={"norm.weight": 1, "norm.bias": 1})
    engine.deepspeed.train()
    train(engine, [3], alone)
    share_statistics(model)
    engine.close()
    assert int(model.norm.num_batches_tracked) == 1


@pytest.mark.launch
def test_the_export_has_them(alone: World, tmp_path: Path) -> None:
    """From the engine through a checkpoint into the merged folder, as transformers reads it; half of it is refused."""
    full: Strategy = Strategy.model_validate("full")
    trained = resnet()
    trained(pixel_values=pixels())
    engine = opened(full.adapt(trained), "zero2", alone)
    trained_in = save(engine, RunFolder(tmp_path), Progress(step=1), alone, BASE)
    engine.close()
    model = full.adapt(resnet(seed=1))
    weights = read_result([trained_in])
    put_trained(model, weights)
    full.merge(model).save_pretrained(tmp_path / "merged")
    found = ResNetForImageClassification.from_pretrained(tmp_path / "merged")
    assert furthest(dict(found.named_buffers()), dict(trained.named_buffers())) == 0
    with torch.no_grad():
        expected = trained.eval()(pixel_values=pixels()).logits
        assert torch.equal(found.eval()(pixel_values=pixels()).logits, expected)
    lacking = {name: value for name, value in weights.items() if not name.endswith("running_mean")}
    with pytest.raises(CheckpointError, match=r"8 weights missing, such as .*running_mean"):
        put_trained(full.adapt(resnet()), lacking)
