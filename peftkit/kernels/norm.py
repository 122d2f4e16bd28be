"""RMSNorm (Zhang & Sennrich, 2019, https://arxiv.org/abs/1910.07467) and its gradient in few passes over the states.

transformers writes it out in torch: autograd then goes back through each operation, and keeps what each has made, in 16 bits also
a copy of the states in 32. Here x is kept, which its layer keeps anyway, and a number for each token.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftkit.config.speed import Way
from peftkit.errors import ConfigError
from peftkit.kernels.linear import gathered
from peftkit.kernels.patch import Patch, patch

NEAR = {torch.float32: 1e-5, torch.float64: 1e-5}
ROUNDED = 1e-2
"""How far a number may be from the library's own, as a share of it: in 16 bits by the last bit."""


def hang_norms(model: nn.Module, way: Way) -> tuple[list[Patch], list[str]]:
    """Let every RMSNorm that nothing else stands for compute by `rms_norm`: handles, and words on it.

    Raises ConfigError if it is `on` and the model has none that computes the same.
    """
    if way == "off" or (way == "auto" and torch.cuda.is_available()):
        return [], []
    found = [patch(norm, forward) for norm in model.modules() if is_plain(norm)]
    if not found and way == "on":
        raise ConfigError("--speed.norm on: the model has no RMSNorm that is computed as Llama's; leave it at auto")
    return found, [f"{len(found)} norms and their gradients in few passes"] if found else []


@torch.no_grad()
def is_plain(norm: Any) -> bool:
    """Whether it is a module that computes what `rms_norm` does, as rows of several sizes show."""
    weight = getattr(norm, "weight", None)
    if (
        not type(norm).__name__.endswith("RMSNorm")
        or "forward" in vars(norm)
        or len(signature(type(norm).forward).parameters) != 2  # a gated one takes more than x
        or not isinstance(eps_of(norm), float)
        or not isinstance(weight, Tensor)
        or weight.ndim != 1
        or hasattr(weight, "ds_id")  # ZeRO-3 may have it elsewhere
        or weight.device.type != "cpu"
    ):
        return False
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(3, len(weight), generator=numbers) * torch.tensor([[1.0], [1e-3], [30.0]])
    near = NEAR.get(weight.dtype, ROUNDED)
    expected: Tensor = type(norm).forward(norm, x.to(weight.dtype))
    return torch.allclose(rms_norm(x.to(weight.dtype), weight, eps_of(norm)), expected, rtol=near, atol=near)


def eps_of(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def forward(norm: Any, x: Tensor) -> Tensor:
    """The module's output; its own way where there is no gradient to come, and for other formats than its weight's."""
    if (
        not torch.is_grad_enabled()  # a text's single tokens: a node of autograd takes longer than what it saves
        or x.dtype is not norm.weight.dtype
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
    ):
        own: Tensor = type(norm).forward(norm, x)
        return own
    return rms_norm(x, norm.weight, eps_of(norm))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight * x / sqrt(mean(x^2) + eps)` for x (..., width), weight (width,): (..., width), in fp32 inside.

    It has a gradient, and no gradient of that.
    """
    found: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return found


class _RMSNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x^2) + eps) and g the gradient times the weight: of x it is r g - x r^3 mean(g x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        root = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, root)
        return torch.mul(x, root, out=torch.empty_like(x)).mul_(weight)  # rounded between the two, as the library does

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, root = ctx.saved_tensors
        for_x, for_weight, _ = ctx.needs_input_grad
        wide, pulled = x.to(root.dtype), gradient.to(root.dtype)
        of_x = of_weight = None
        if for_weight:
            of_weight = (pulled * wide).mul_(root).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
        if for_x:
            with gathered(weight):
                pulled = pulled * weight
            shared = torch.linalg.vecdot(pulled, wide).unsqueeze(-1).mul_(root.pow(3)).div_(-x.shape[-1])
            of_x = pulled.mul_(root).addcmul_(wide, shared).to(x.dtype)
        return of_x, of_weight, None
