"""The two optimizers that torch lacks in the form that ZeRO needs: state made at the first step, one element at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adagrad import adagrad


class Lion(torch.optim.Optimizer):
    """`w -= lr * (sign(b1 m + (1 - b1) g) + decay * w)`, then `m = b2 m + (1 - b2) g` (https://arxiv.org/abs/2302.06675)."""

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                state = self.state[weight]
                if not state:
                    state["exp_avg"] = torch.zeros_like(weight)
                momentum = state["exp_avg"]
                update = torch.lerp(weight.grad, momentum, beta1).sign_()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
                momentum.lerp_(weight.grad, 1 - beta2)


class LazyAdagrad(torch.optim.Optimizer):
    """torch's Adagrad with its state made at the first step.

    torch.optim.Adagrad makes it when it is built, before ZeRO has flattened the parameters; DeepSpeed then builds it
    again without its groups' own rates and decays.
    """

    def __init__(self, params: Any, lr: float = 1e-2, eps: float = 1e-10, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            states = [self.state[weight] for weight in weights]
            for weight, state in zip(weights, states, strict=True):
                if not state:
                    state.update(step=torch.zeros(()), sum=torch.zeros_like(weight))
            adagrad(
                weights,
                [weight.grad for weight in weights],
                [state["sum"] for state in states],
                [state["step"] for state in states],
                has_sparse_grad=False,
                foreach=False,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                lr_decay=0.0,
                eps=group["eps"],
                maximize=False,
            )
