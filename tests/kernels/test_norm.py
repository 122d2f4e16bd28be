"""RMSNorm in few passes: transformers' own numbers and gradients, with less kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from peftkit.errors import ConfigError
from peftkit.kernels.norm import hang_norms, is_plain
from tests.kernels.test_fused import adapted, learnt
from tests.tiny import tiny


class GatedRMSNorm(LlamaRMSNorm):
    """The same where it gets no gate."""

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        normed: torch.Tensor = super().forward(hidden_states)
        return normed if gate is None else normed * gate


def norm_of(width: int, dtype: torch.dtype = torch.float32, trains: bool = True) -> Any:
    norm = LlamaRMSNorm(width, eps=1e-5).to(dtype)
    nn.init.normal_(norm.weight.data, generator=torch.Generator().manual_seed(1))
    return norm.requires_grad_(trains)


def through(norm: Any, x: torch.Tensor) -> list[torch.Tensor | None]:
    x, norm.weight.grad = x.clone().requires_grad_(), None
    out = norm(x)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)).sum().backward()
    return [out.detach(), x.grad, norm.weight.grad]


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("shape", [(3, 50, 160), (7, 160), (160,), (0, 160), (2, 4, 5, 160)])
def test_outputs_and_gradients_are_the_librarys(shape: tuple[int, ...], trains: bool) -> None:
    norm, x = norm_of(160, trains=trains), torch.randn(shape, generator=torch.Generator().manual_seed(3))
    expected = through(norm, x)
    (handle,), _ = hang_norms(norm, "auto")
    for found, one in zip(through(norm, x), expected, strict=True):
        assert (found is None) == (one is None)
        if one is not None:
            assert_close(found, one, rtol=2e-6, atol=2e-6)
    handle.remove()
    assert "forward" not in vars(norm)


def test_in_16_bits_it_is_nearer_to_the_truth() -> None:
    norm, x = norm_of(512, torch.bfloat16), torch.randn(64, 512, generator=torch.Generator().manual_seed(3))
    exact = through(norm_of(512).to(torch.float64), x.bfloat16().double())

    def apart(found: list[Any]) -> list[float]:
        return [float((one.double() - true).norm() / true.norm()) for one, true in zip(found, exact, strict=True)]

    theirs = through(norm, x.bfloat16())
    hang_norms(norm, "auto")
    ours = through(norm, x.bfloat16())
    for one, other in zip(apart(ours), apart(theirs), strict=True):
        assert one <= other * 1.01


def test_tokens_of_nothing_and_of_much_stay_finite() -> None:
    norm = norm_of(16)
    x = torch.cat([torch.zeros(1, 16), torch.full((1, 16), 1e15), torch.full((1, 16), 1e-30)])
    expected = through(norm, x)
    hang_norms(norm, "auto")
    for found, one in zip(through(norm, x), expected, strict=True):
        assert_close(found, one, rtol=1e-5, atol=1e-6)


def test_a_model_learns_the_same() -> None:
    model = adapted("llama")
    expected = learnt(model)
    handles, words = hang_norms(model, "on")
    assert (len(handles), words) == (5, ["5 norms and their gradients in few passes"])
    assert_close(learnt(model), expected, rtol=1e-5, atol=1e-6)


def test_no_copy_is_kept_for_the_backward_pass() -> None:
    def kept(norm: Any) -> int:
        """Bytes besides x, which its layer keeps anyway."""
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(64, 512).bfloat16().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = norm(x)
        seen.pop(x.untyped_storage().data_ptr(), None)
        assert out.requires_grad
        return sum(seen.values())

    norm = norm_of(512, torch.bfloat16, trains=False)
    assert kept(norm) >= 4 * 64 * 512
    hang_norms(norm, "auto")
    assert kept(norm) == 2 * 512 + 4 * 64, "the weight, and a number for each token"


def test_what_computes_something_else_is_left() -> None:
    assert not is_plain(GemmaRMSNorm(8))  # 1 + weight
    assert not is_plain(GatedRMSNorm(8))
    assert not is_plain(nn.LayerNorm(8))
    assert not is_plain(nn.Linear(8, 8))
    assert hang_norms(tiny("gpt2", head="causal_lm"), "auto") == ([], [])
    with pytest.raises(ConfigError, match=r"--speed.norm on: .* leave it at auto"):
        hang_norms(tiny("gpt2", head="causal_lm"), "on")
    assert hang_norms(norm_of(8), "off") == ([], [])


def test_what_has_no_gradient_or_another_format_keeps_the_librarys_way() -> None:
    norm, x = norm_of(16), torch.randn(3, 16)
    half, plain = norm(x.bfloat16()), norm(x)
    hang_norms(norm, "auto")
    assert torch.equal(norm(x.bfloat16()), half)
    with torch.no_grad():
        assert torch.equal(norm(x), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype is torch.float32
