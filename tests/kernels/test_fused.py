"""Norms as one kernel each: the same outputs and gradients, and nothing left when it is taken off."""

from __future__ import annotations

import sys
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.models.llama import modeling_llama

from peftkit.errors import ConfigError
from peftkit.kernels import fused
from peftkit.kernels.fused import hang_compiled, hang_liger
from peftkit.strategies import Lora
from tests.tiny import tiny
from tests.trained import head_of


def learnt(model: Any, lengths: tuple[int, ...] = (9, 14)) -> list[torch.Tensor]:
    """Losses of batches of several sizes, and the gradients of all."""
    model.zero_grad()
    losses = []
    for length in lengths:
        ids = torch.randint(4, 300, (2, length), generator=torch.Generator().manual_seed(length))
        losses.append(model(input_ids=ids, labels=ids, use_cache=False).loss)
    torch.stack(losses).sum().backward()
    return [
        torch.stack(losses).detach(),
        *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None),
    ]


def adapted(family: str) -> Any:
    model = tiny(family, head="causal_lm")
    return Lora(rank=2).adapt(model, head_of(model))


@pytest.mark.parametrize(("family", "norms"), [("llama", 5), ("gpt2", 0)])
def test_compiled_norms_compute_the_same(family: str, norms: int) -> None:
    model = adapted(family)
    expected, before = learnt(model), [dict(vars(module)) for module in model.modules()]
    handles, words = hang_compiled(model, True)
    assert len(handles) == norms
    assert str(norms) in words[0] if norms else "nothing to compile" in words[0]
    assert_close(learnt(model), expected, rtol=1e-5, atol=1e-6)
    for handle in handles:
        handle.remove()
    assert [vars(module).keys() for module in model.modules()] == [had.keys() for had in before]


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"--speed.compile: .* C\+\+ compiler"):
        hang_compiled(nn.Linear(2, 2), True)
    assert hang_compiled(nn.Linear(2, 2), False) == ([], [])


class Twice:
    """Stands for Liger's norm: another computation, with settings of its own on the module."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        doubled: torch.Tensor = 2 * type(self).forward(self, hidden)  # type: ignore[arg-type]
        return doubled


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A GPU, and a package that does to a model what Liger does; what it was asked for."""
    asked: list[dict[str, Any]] = []

    def apply(model: Any, **how: Any) -> None:
        asked.append(how)
        if model.config.model_type != "llama":
            return
        monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", Twice)  # for models to come
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.offset = 0.0
                module.forward = MethodType(Twice.forward, module)

    package, inside = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    inside._apply_liger_kernel_to_instance = apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", inside)
    monkeypatch.setattr(fused, "find_spec", lambda name: package)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return asked


def test_liger_is_bound_to_this_model_alone(liger: list[dict[str, Any]]) -> None:
    model, usual = adapted("llama"), modeling_llama.LlamaRMSNorm
    expected, before = learnt(model), [dict(vars(module)) for module in model.modules()]
    handles, words = hang_liger(model, "auto")
    assert liger == [{"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}]
    assert words == ["Liger's kernels in 5 norms and gated layers"]
    assert not torch.equal(learnt(model)[0], expected[0])
    assert modeling_llama.LlamaRMSNorm is usual
    for handle in handles:
        handle.remove()
    assert [vars(module).keys() for module in model.modules()] == [had.keys() for had in before]
    assert torch.equal(learnt(model)[0], expected[0])


def test_what_liger_does_not_know_is_left(liger: list[dict[str, Any]]) -> None:
    assert hang_liger(adapted("gpt2"), "auto") == ([], [])
    with pytest.raises(ConfigError, match=r"--speed.liger on: Liger has nothing for gpt2"):
        hang_liger(adapted("gpt2"), "on")
    assert hang_liger(adapted("llama"), "off") == ([], [])


def test_without_a_gpu_or_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama")
    assert hang_liger(model, "auto") == ([], [])
    with pytest.raises(ConfigError, match=r"--speed.liger on: its kernels are a GPU's"):
        hang_liger(model, "on")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install liger-kernel"):
        hang_liger(model, "on")


def test_an_installation_that_is_broken_is_told(liger: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    handles, (words,) = hang_liger(adapted("llama"), "auto")
    assert handles == []
    assert "it cannot be imported" in words
    with pytest.raises(ConfigError, match=r"--speed.liger on: it cannot be imported"):
        hang_liger(adapted("llama"), "on")
