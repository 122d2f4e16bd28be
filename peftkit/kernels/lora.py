"""A layer and its LoRA adapter computed as one: y = x W' + b + s (x A') B', and its gradient, without PEFT's in-between results.

PEFT computes the adapter as layers of its own: it multiplies, scales and adds whole outputs, and adds the two parts of the
input's gradient once more. Here thin products go straight into the large ones. In fp32, and for a 4-bit base (whose weights are
unpacked for each product anyway), W + s B A is made for the moment instead where that is less work: it costs the same for
however many rows. Not in 16 bits, where W would round the adapter away. What is kept for the backward pass is x, once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftkit.config.speed import Way
from peftkit.errors import ConfigError
from peftkit.kernels.patch import patch
from peftkit.kernels.products import product, product_back, product_outer

FOLDING = 1.3
"""Folding an adapter into a weight takes so much longer, for its operations, than products of many rows."""


def hang_lora(model: nn.Module, way: Way) -> tuple[list[Any], list[str]]:
    """Let every layer with one plain LoRA adapter compute it together with its base: handles, and words on it."""
    layers = list(adapted(model))
    if way == "off" or not layers:
        if way == "on":
            raise ConfigError("--speed.lora on: nothing of this model has a LoRA adapter; leave it at auto")
        return [], []
    reasons = {reason for layer in layers if (reason := unfit(layer))}
    if reasons and way == "on":
        raise ConfigError([f"--speed.lora on: {reason}; leave it at auto" for reason in sorted(reasons)])
    found = [patch(layer, forward) for layer in layers if not unfit(layer)]
    words = [f"LoRA: {len(found)} of {len(layers)} layers compute their adapter with them"]
    return found, words + [f"LoRA as PEFT computes it: {reason}" for reason in sorted(reasons)]


def adapted(model: nn.Module) -> Iterator[Any]:
    """PEFT's linear layers with LoRA adapters, also those on a 4-bit base."""
    # Where these are not imported nothing of them can be here, and importing them takes seconds.
    plain, packed = (sys.modules.get(f"peft.tuners.lora.{name}") for name in ("layer", "bnb"))
    kinds = [module.Linear for module in (plain,) if module] + [getattr(packed, "Linear4bit", None)]
    yield from (module for module in model.modules() if type(module) in kinds)


def unfit(layer: Any) -> str:
    """Why the layer keeps PEFT's own computation whatever it is called with; empty if it does not."""
    base = layer.base_layer
    if "forward" in vars(layer):
        return "something else stands in its place"
    if type(base) is not nn.Linear and not is_4bit(base):
        return f"the base layer is a {type(base).__name__}"
    if layer.lora_variant:
        return "its adapter is no plain LoRA (DoRA, ...)"
    if any(getattr(dropout, "p", 0) for dropout in layer.lora_dropout.values()):
        return "its adapter has dropout"
    if any(layer.lora_bias.values()):
        return "its adapter has a bias"
    return ""


def is_4bit(base: nn.Module) -> bool:
    """Whether it is bitsandbytes' own layer; a class of someone else's may compute something else."""
    known = sys.modules.get("bitsandbytes.nn")
    return known is not None and type(base) is known.Linear4bit


def forward(layer: Any, x: Tensor, *args: Any, **named: Any) -> Tensor:
    """PEFT's output; its own forward computes it where a call asks for more than one plain adapter."""
    found = None if args or named else asked(layer, x)
    if found is None:
        computed: Tensor = type(layer).forward(layer, x, *args, **named)
        return computed
    base, down, up, scale = found
    state = getattr(base.weight, "quant_state", None)
    apply: Any = _Lora.apply
    # Viewed out here: a model may change what it gets in place, which autograd refuses for a view made in a Function.
    out: Tensor = apply(x, base.weight, base.bias, down, up, scale, state).view(*x.shape[:-1], len(up))
    return out


def asked(layer: Any, x: Tensor) -> tuple[Any, Tensor, Tensor, float] | None:
    """The base layer, A, B and the scale, if this call asks for just these; what is looked at may change between calls."""
    active = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(active) != 1 or active[0] not in layer.lora_A:
        return None
    name, base = active[0], layer.base_layer
    parts = base, layer.lora_A[name], layer.lora_B[name]
    down, up = parts[1].weight, parts[2].weight
    if (
        any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in parts)
        or hasattr(down, "ds_id")  # ZeRO-3 gathers a weight around its own module's forward alone
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or not x.dtype is down.dtype is up.dtype
        or (base.bias is not None and base.bias.dtype is not x.dtype)
        or base.weight.requires_grad
    ):
        return None
    if getattr(base.weight, "quant_state", None) is not None:
        fits = base.compute_dtype in (None, x.dtype) and not getattr(
            base.weight.quant_state, "packing_format_for_cpu", False
        )
    else:
        fits = base.weight.dtype is x.dtype
    return (base, down, up, layer.scaling[name]) if fits else None


class _Lora(torch.autograd.Function):
    """The gradients of x, b, A and B; W has none."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float, state: Any
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        dense = unpacked(weight, state, x.dtype)
        ctx.folds, thin = folds(len(rows), dense), None
        if ctx.folds:
            out = product(rows, folded(dense, down, up, scale, state), bias)
        else:
            thin = product(rows, down)
            out = product(rows, dense, bias).addmm_(thin, up.t(), alpha=scale)
        trains = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        ctx.save_for_backward(x if trains else None, weight, down, up, thin if ctx.needs_input_grad[4] else None)
        ctx.scale, ctx.state, ctx.shape = scale, state, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, thin = ctx.saved_tensors
        for_x, _, for_bias, for_down, for_up, *_ = ctx.needs_input_grad
        gradient = gradient.contiguous()
        of_x = of_down = of_up = None
        if for_down or (for_x and not ctx.folds):
            inner = product_back(gradient, up).mul_(ctx.scale)
        if for_x:
            dense = unpacked(weight, ctx.state, gradient.dtype)
            if ctx.folds:
                of_x = product_back(gradient, folded(dense, down, up, ctx.scale, ctx.state))
            else:
                of_x = product_back(gradient, dense).addmm_(inner, down)
            of_x = of_x.view(ctx.shape)
        if for_down:
            of_down = product_outer(inner, x)
        if for_up:
            thin = product(x.reshape(-1, x.shape[-1]), down) if thin is None else thin
            of_up = product_outer(gradient, thin).mul_(ctx.scale)
        return of_x, None, gradient.sum(0) if for_bias else None, of_down, of_up, None, None


def folds(rows: int, weight: Tensor) -> bool:
    """Whether W + s B A is less work than two thin products of so many rows (with B forward, with A back)."""
    outputs, inputs = weight.shape
    return weight.dtype is torch.float32 and rows * (outputs + inputs) > FOLDING * 2 * outputs * inputs


def folded(dense: Tensor, down: Tensor, up: Tensor, scale: float, state: Any) -> Tensor:
    """W + s B A; a W that was unpacked for this is changed in place."""
    return dense.addmm_(up, down, alpha=scale) if state is not None else torch.addmm(dense, up, down, alpha=scale)


def unpacked(weight: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    """The weight as (outputs, inputs): the numbers that a 4-bit one stands for, made for one product, or itself."""
    if state is None:
        return weight
    from bitsandbytes import functional

    largest = state.absmax
    if state.nested:
        largest = functional.dequantize_blockwise(largest, state.state2) + state.offset
    dense: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
        weight, largest.float(), state.blocksize, state.quant_type, state.shape, dtype
    )
    return dense
