"""Linear layers whose products go to the processor's fastest kernels (kernels/products.py), forward and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from peftkit.config.speed import Way
from peftkit.errors import ConfigError
from peftkit.kernels.patch import patch
from peftkit.kernels.products import choose, has_onednn, product, product_back, product_outer


def hang_products(model: nn.Module, way: Way) -> tuple[list[Any], list[str]]:
    """Let every plain linear layer compute by `products`, also the base layers inside PEFT's: handles, and words on it."""
    if way == "off":
        return [], []
    if torch.cuda.is_available() or not has_onednn():
        if way == "on":
            raise ConfigError(
                "--speed.kernels on: there is nothing to choose from but on a CPU with oneDNN; leave it at auto"
            )
        return [], []
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and "forward" not in vars(layer)]
    return [choose(), *(patch(layer, forward) for layer in layers)], [
        "fp32 products by the kernel that is fastest here"
    ]


def forward(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer's output; torch's own way where there is no choice of kernels."""
    if x.dtype is not torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return functional.linear(x, layer.weight, layer.bias)
    return linear(x, layer.weight, layer.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by the fastest kernels. It has a gradient, and no gradient of that."""
    if not torch.is_grad_enabled():
        return product(x, weight, bias)
    apply: Any = _Linear.apply
    # Viewed out here: a model may change what it gets in place, which autograd refuses for a view made in a Function.
    found: Tensor = apply(x, weight, bias).view(*x.shape[:-1], len(weight))
    return found


class _Linear(torch.autograd.Function):
    """Keeps x only if the weight trains."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shape = x.shape
        return product(x.reshape(-1, x.shape[-1]), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()  # what is summed up comes as one number, expanded
        for_x, for_weight, for_bias = ctx.needs_input_grad
        with gathered(weight):
            back = product_back(gradient, weight).view(ctx.shape) if for_x else None
        outer = product_outer(gradient, x) if for_weight else None
        return back, outer, gradient.sum(0) if for_bias else None


@contextmanager
def gathered(weight: Any) -> Iterator[None]:
    """Under ZeRO-3 the weight is whole in here. It mostly is already: DeepSpeed gathers a module's before its backward."""
    if getattr(getattr(weight, "ds_status", None), "name", "") != "NOT_AVAILABLE":
        yield
        return
    weight.all_gather()
    try:
        yield
    finally:
        weight.partition()
