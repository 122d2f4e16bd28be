"""Linear layers computed by other kernels: the same outputs and gradients, and nothing left when they are taken off."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from peftkit.engine.state import capture
from peftkit.engine.world import World
from peftkit.kernels import products
from peftkit.kernels.linear import hang_products, linear
from peftkit.kernels.products import choose
from tests.conftest import Together
from tests.engine.odd import Odd, opened, optimizer, plain, train
from tests.kernels.test_products import filled
from tests.tiny import tiny

NEAR = {"rtol": 1e-5, "atol": 5e-5}
"""Sums of hundreds of products of normal numbers, in another order than torch's."""


@pytest.fixture(autouse=True)
def onednn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every shape is oneDNN's, however small."""
    everything_onednns(monkeypatch)
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path))
    chosen = choose(tmp_path / "products.json")
    yield
    chosen.remove()


def everything_onednns(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(products, "is_faster", lambda usual, other: True)
    patch.setattr(products, "FEWEST", 0.0)
    patch.setattr(products, "FEW", 1)


@pytest.mark.parametrize("trains", ["x", "weight", "bias", "x weight", "x weight bias"])
@pytest.mark.parametrize("shape", [(300, 160), (4, 70, 160), (2, 3, 50, 160), (0, 160), (160,)])
def test_outputs_and_gradients_are_those_of_torch(shape: tuple[int, ...], trains: str) -> None:
    def run(of: Any) -> list[Tensor | None]:
        x, weight, bias = filled(*shape), filled(224, 160), filled(224)
        for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
            tensor.requires_grad_(name in trains.split())
        out = of(x, weight, bias)
        (out * filled(*out.shape)).sum().backward()
        return [out, x.grad, weight.grad, bias.grad]

    for found, expected in zip(run(linear), run(functional.linear), strict=True):
        assert (found is None) == (expected is None)
        assert found is None or expected is None or torch.allclose(found, expected, **NEAR)


def test_a_frozen_weight_keeps_no_input() -> None:
    x, frozen, trained = filled(300, 160).requires_grad_(), filled(224, 160), filled(224, 160).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        linear(x, frozen)
        assert [tensor.shape for tensor in kept] == [frozen.shape]
        linear(x, trained)
    assert sorted(tensor.shape for tensor in kept[1:]) == sorted([x.shape, trained.shape])


def test_what_comes_expanded_or_cut_is_as_good() -> None:
    def run(of: Any) -> Tensor | None:
        x = filled(300, 320)[:, ::2].requires_grad_()
        of(x, filled(224, 160)).sum().backward()
        return x.grad

    assert_close(run(linear), run(functional.linear), **NEAR)


def test_the_output_may_be_changed_in_place() -> None:
    def run(of: Any) -> list[Tensor | None]:
        x, weight = filled(4, 70, 160).requires_grad_(), filled(224, 160).requires_grad_()
        out = of(x, weight)
        out[filled(4, 70) > 0] = 0
        out.pow(2).sum().backward()
        return [x.grad, weight.grad]

    assert_near(run(linear), run(functional.linear))


def test_a_second_gradient_is_refused() -> None:
    x = filled(300, 160).requires_grad_()
    (first,) = torch.autograd.grad(linear(x, filled(224, 160)).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "gpt2"])
def test_a_model_is_the_same_with_it_and_itself_without(family: str) -> None:
    model = tiny(family)
    plain, names = deepcopy(model), list(model.state_dict())
    hooks, words = hang_products(model, "auto")
    assert words and len(hooks) > 1
    copied = deepcopy(model)
    assert list(model.state_dict()) == names
    expected = gradients(plain)
    assert_near(gradients(model), expected)
    assert_near(gradients(copied), expected)
    for hook in hooks:
        hook.remove()
    assert not [module for module in model.modules() if "forward" in vars(module)]
    assert_close(gradients(model), expected)


def test_activations_computed_again_give_the_same() -> None:
    model = nn.Sequential(nn.Linear(160, 224), nn.GELU(), nn.Linear(224, 160))
    x = filled(70, 160).requires_grad_()
    expected = torch.autograd.grad(model(x).pow(2).sum(), [x, *model.parameters()])
    hang_products(model, "on")
    for reentrant in (True, False):
        model.zero_grad()
        x.grad = None
        checkpoint(model, x, use_reentrant=reentrant).pow(2).sum().backward()
        assert_near([x.grad, *(weight.grad for weight in model.parameters())], expected)


def test_bf16_and_autocast_take_the_usual_way() -> None:
    layer = nn.Linear(160, 224)
    x = filled(70, 160)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
    hang_products(layer, "auto")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).equal(expected)
    layer.bfloat16()
    assert layer(x.bfloat16()).equal(functional.linear(x.bfloat16(), layer.weight, layer.bias))


def onednn_under_zero(world: World, folder: Path, zero: str) -> None:
    """Three steps of two processes, with every product oneDNN's, are those of plain torch."""
    with pytest.MonkeyPatch.context() as patch:
        everything_onednns(patch)
        model = Odd()
        chosen = choose(folder / f"{world.process}.json")
        hooks, _ = hang_products(model, "on")
        engine = opened(model, zero, world)
        train(engine, range(3), world)
        found = capture(engine).weights
        engine.close()
        asked = [name.split()[0] for name in products._table.known] if products._table else []
        for hook in [chosen, *hooks]:
            hook.remove()
    assert {"forward", "back", "outer"} <= set(asked)
    expected = plain(Odd(), optimizer("adamw"), optimizer("adamw").build, range(3))
    for name, weight in found.items():
        assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)


CHECKS: dict[str, Any] = {zero: partial(onednn_under_zero, zero=zero) for zero in ("zero2", "zero3")}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)


def test_off_hangs_nothing() -> None:
    assert hang_products(tiny("llama"), "off") == ([], [])


def gradients(model: Any) -> list[Tensor]:
    model.zero_grad()
    ids = torch.arange(4, 44).view(2, 20)
    labels = torch.tensor([0, 1]) if "Sequence" in type(model).__name__ else ids
    model(input_ids=ids, labels=labels).loss.backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def assert_near(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-7)
