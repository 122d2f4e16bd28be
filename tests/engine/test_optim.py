"""Optimizers: the groups they are given, and their steps in DeepSpeed against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftkit.engine.ds_config import read_config
from peftkit.engine.optim import Optimizer, parameter_groups
from peftkit.engine.state import capture, load_weights, restore
from peftkit.engine.torch_optim import LazyAdagrad, Lion
from peftkit.engine.world import World
from peftkit.errors import ConfigError
from peftkit.models.inspect import depth_of
from peftkit.strategies import Lora
from tests.conftest import Together
from tests.engine.odd import Odd, furthest, opened, optimizer, plain, train
from tests.tiny import tiny

STEPS = range(5)


class FormulaLion(torch.optim.Optimizer):
    """The paper's two lines, one element after the other left to torch."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].get("mean", torch.zeros_like(weight))
                update = torch.sign(0.9 * mean + 0.1 * weight.grad)
                weight -= group["lr"] * (update + group["weight_decay"] * weight)
                self.state[weight]["mean"] = 0.99 * mean + 0.01 * weight.grad


PLAIN: dict[str, tuple[dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = {
    "adamw": ({}, torch.optim.AdamW),
    "adam": ({}, torch.optim.Adam),
    "sgd": ({"momentum": 0.9, "nesterov": True}, partial(torch.optim.SGD, momentum=0.9, nesterov=True)),
    "adagrad": ({}, torch.optim.Adagrad),
    "lion": ({}, FormulaLion),
    "adafactor": ({}, torch.optim.Adafactor),
}
EIGHT_BITS = ("adamw_8bit", "paged_adamw_8bit")
STAGES = ("zero0", "zero1", "zero2", "zero3")


def steps_as_plain_torch(world: World, folder: Path, name: str, zero: str) -> None:
    settings, build = PLAIN[name]
    optim = optimizer(name, **settings)
    engine = opened(Odd(), zero, world, optim)
    train(engine, STEPS, world)
    found = capture(engine).weights
    engine.close()
    expected = plain(Odd(), optim, build, STEPS)
    assert furthest(found, expected) < 1e-5
    assert furthest(found, dict(Odd().named_parameters())) > 1e-3, "it moved"


def steps_while_summing(world: World, folder: Path, zero: str) -> None:
    """The gradients are summed over the processes while the rest of them is computed."""
    together = {"zero_optimization": {**read_config(zero)["zero_optimization"], "overlap_comm": True}}
    engine = opened(Odd(), zero, world, **together)
    train(engine, STEPS, world)
    found = capture(engine).weights
    engine.close()
    assert furthest(found, plain(Odd(), optimizer("adamw"), torch.optim.AdamW, STEPS)) < 1e-5


def steps_in_8_bits(world: World, folder: Path, name: str, zero: str) -> None:
    """It learns, it is near AdamW, and a restored engine goes on as the first one would have, to the last bit."""
    optim = optimizer(name, lr=1e-3, weight_decay=0.0)
    engine = opened(Odd(wide=True), zero, world, optim)
    losses = train(engine, [0] * 6, world)
    assert losses == sorted(losses, reverse=True)
    state = capture(engine)
    assert any(value.dtype == torch.uint8 for value in [*state.optimizer.values(), *state.local.values()])
    train(engine, [1], world)
    expected = capture(engine)
    engine.close()
    model = Odd(wide=True, seed=1)
    load_weights(model, state.weights)
    again = opened(model, zero, world, optim)
    restore(again, state)
    train(again, [1], world)
    found = capture(again)
    again.close()
    assert furthest(found.weights, expected.weights) == 0
    assert furthest(found.optimizer, expected.optimizer) == 0
    assert furthest(found.local, expected.local) == 0
    near = plain(Odd(wide=True), optim, torch.optim.AdamW, [0] * 6 + [1])
    assert furthest(found.weights, near) < 6e-3, "within a step's length of what 32 bits give"


CHECKS = {
    f"{name}-{zero}": partial(steps_as_plain_torch, name=name, zero=zero)
    for name in PLAIN
    for zero in STAGES
    if zero == "zero0" or Optimizer.registry[name].splits
}
CHECKS |= {
    f"adamw-{zero}": partial(steps_as_plain_torch, name="adamw", zero=zero)
    for zero in ("zero2_offload", "zero3_offload")
}
CHECKS |= {f"overlap-{zero}": partial(steps_while_summing, zero=zero) for zero in ("zero2", "zero3")}
CHECKS |= {f"{name}-{zero}": partial(steps_in_8_bits, name=name, zero=zero) for name in EIGHT_BITS for zero in STAGES}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_in_deepspeed_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)


def test_every_optimizer_is_checked() -> None:
    assert set(Optimizer.registry) == {*PLAIN, *EIGHT_BITS}


def by_name(model: nn.Module, optim: Optimizer, depths: dict[str, int], **born: Any) -> dict[str, dict[str, Any]]:
    """Parameter -> its group; no group is empty, and none appears twice."""
    groups = parameter_groups(model, optim, depths, born.get("born", {}))
    assert all(group["params"] for group in groups)
    assert len({group["label"] for group in groups}) == len(groups)
    found = {name: group for group in groups for name in group["names"]}
    named = dict(model.named_parameters())
    for group in groups:
        assert all(named[name] is weight for name, weight in zip(group["names"], group["params"], strict=True))
    assert sorted(found) == sorted(name for name, weight in named.items() if weight.requires_grad)
    return found


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "t5"])
def test_matrices_decay_and_biases_and_norms_do_not(family: str) -> None:
    model = tiny(family)
    groups = by_name(model, optimizer("adamw", lr_by_name={}), {})
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    undecayed = {id(weight) for norm in norms for weight in norm.parameters()}
    undecayed |= {id(weight) for name, weight in model.named_parameters() if name.endswith("bias")}
    for name, weight in model.named_parameters():
        assert (groups[name]["weight_decay"] == 0) == (id(weight) in undecayed), name


def test_without_decay_there_is_one_group_and_what_is_frozen_is_in_none() -> None:
    model = Odd()
    model.norm.requires_grad_(False)
    groups = parameter_groups(model, Optimizer.model_validate({"lr": 0.5}), {}, {})
    assert [group["lr"] for group in groups] == [0.5]
    assert groups[0]["names"] == ["scale", "first.weight", "first.bias", "middle.weight", "last.weight", "last.bias"]
    assert parameter_groups(model.requires_grad_(False), Optimizer.model_validate({}), {}, {}) == []


def test_the_first_pattern_that_is_found_in_a_name_gives_the_rate() -> None:
    rates = {r"last\.": 1.0, "weight$": 2.0, "last": 3.0, "matches nothing": 4.0}
    groups = by_name(Odd(), optimizer("adamw", lr=5.0, lr_by_name=rates, weight_decay=0.0), {})
    found = {name: group["lr"] for name, group in groups.items()}
    assert found == {
        "scale": 5.0,
        "first.weight": 2.0,
        "first.bias": 5.0,
        "norm.weight": 2.0,
        "norm.bias": 5.0,
        "middle.weight": 2.0,
        "last.weight": 1.0,
        "last.bias": 1.0,
    }
    assert all(group["peak"] == group["lr"] for group in groups.values())


def test_each_layer_further_from_the_output_learns_more_slowly() -> None:
    model = tiny("llama")
    groups = by_name(model, optimizer("adamw", lr=1.0, layer_decay=0.5, lr_by_name={}), depth_of(model))
    share = {"embed_tokens": 0.125, "layers.0.": 0.25, "layers.1.": 0.5, "model.norm": 1.0, "lm_head": 1.0}
    for part, expected in share.items():
        assert {group["lr"] for name, group in groups.items() if part in name} == {expected}, part


def test_layer_decay_finds_the_layers_under_an_adapter() -> None:
    """The rates of LoRA's two matrices, as LoRA+ has them, and the decay multiply."""
    model = Lora(rank=2).adapt(tiny("llama"), ())
    optim = optimizer("adamw", lr=1.0, layer_decay=0.5, lr_by_name={"lora_B": 16.0})
    groups = by_name(model, optim, depth_of(model))
    for layer, share in ((0, 0.25), (1, 0.5)):
        for matrix, rate in (("lora_A", 1.0), ("lora_B", 16.0)):
            found = {group["lr"] for name, group in groups.items() if f"layers.{layer}." in name and matrix in name}
            assert found == {rate * share}


def test_what_started_to_train_later_has_a_group_of_its_own() -> None:
    """Its optimizer has taken fewer steps."""
    groups = by_name(Odd(), optimizer("adamw", lr_by_name={}), {}, born={"first.weight": 1, "first.bias": 1})
    assert groups["first.weight"] is not groups["middle.weight"]
    assert groups["first.bias"] is not groups["last.bias"]
    assert groups["middle.weight"] is groups["last.weight"]


def trajectory(build: Callable[[Any], torch.optim.Optimizer]) -> list[Tensor]:
    """Twenty steps on gradients of very different sizes, zeros among them, in two groups."""
    numbers = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=numbers)) for shape in ((7, 3), (5,), (1,))]
    groups = [
        {"params": weights[:1], "lr": 0.05, "weight_decay": 0.1},
        {"params": weights[1:], "lr": 0.2, "weight_decay": 0.0},
    ]
    optim = build(groups)
    for step in range(20):
        for weight in weights:
            size = 10.0 ** torch.randint(-6, 3, weight.shape, generator=numbers)
            weight.grad = size * torch.randn(weight.shape, generator=numbers) * (step % 5 > 0)
        optim.param_groups[1]["lr"] = 0.2 / (step + 1)
        optim.step()
    return [weight.detach() for weight in weights]


def test_lazy_adagrad_is_torchs_to_the_last_bit() -> None:
    found, expected = trajectory(LazyAdagrad), trajectory(partial(torch.optim.Adagrad, foreach=False))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_lion_is_its_formula() -> None:
    found, expected = trajectory(Lion), trajectory(FormulaLion)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_a_pattern_that_is_no_regular_expression_is_named() -> None:
    (problem,) = optimizer("adamw", lr_by_name={"lora_(": 1.0}).conflicts(None)
    assert "--optim.lr_by_name 'lora_('" in problem
    (problem,) = optimizer("sgd", nesterov=True, lr_by_name={}).conflicts(None)
    assert "--optim.nesterov" in problem and "--optim.momentum" in problem


def test_offloading_without_a_compiler_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    optim = optimizer("adam")
    with pytest.raises(ConfigError, match=r"--optim adam for that, and failed; it needs a C\+\+ compiler"):
        optim.build(parameter_groups(Odd(), optim, {}, {}), offloaded=True)
