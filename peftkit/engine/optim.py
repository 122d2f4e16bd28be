"""Optimizers: one frozen object each, and the parameter groups that they are given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from peftkit.config.section import Choice
from peftkit.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Beta = Annotated[float, Field(ge=0, lt=1)]
Group = dict[str, Any]


class Optimizer(Choice, kind="optimizer", default="adamw"):
    """How a gradient becomes an update. Settings that all share stand here; each adds its own."""

    splits: ClassVar[bool] = True
    """Whether ZeRO may cut its state anywhere: true where the update of an element needs no other element."""

    lr: PositiveFloat = 2e-4
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of the weights; biases and the weights of norms are left out of it."""
    lr_by_name: dict[str, PositiveFloat] = {}
    """Peak rates of their own: a regular expression found in a parameter's name -> its rate, e.g. {lora_B: 3.2e-3}."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer further from the output learns at this share of the next one's rate."""
    clip: NonNegativeFloat = 1.0
    """The gradient's norm is cut to this; 0 turns it off."""
    in_backward: bool = False
    """Move each weight in the backward pass, as soon as its gradient is whole, and let the gradient go: a quarter less memory for
    full fine-tuning in fp32. For one process, steps of one micro-batch, --deepspeed zero0 and no clipping."""

    @property
    def state_bytes(self) -> float:
        """Bytes that it keeps of each weight."""
        return 8.0

    def build(self, groups: Sequence[Group], offloaded: bool = False) -> Any:
        """The torch optimizer over `groups` (each has `params`, `lr`, `weight_decay`); `offloaded`: its state lives on the host."""
        raise NotImplementedError

    def conflicts(self, run: Any) -> Iterator[str]:
        if self.in_backward and self.clip:
            yield "--optim.in_backward moves weights before --optim.clip has a whole gradient to cut; give --optim.clip 0"
        if self.in_backward and run.batch.micro != run.batch.total:
            yield f"--optim.in_backward moves weights once a step: give --batch.micro {run.batch.total}, as --batch.total is"
        for pattern in self.lr_by_name:
            try:
                re.compile(pattern)
            except re.error as problem:
                yield f"--optim.lr_by_name {pattern!r} is no regular expression: {problem}"


class AdamW(Optimizer, name="adamw"):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2017, https://arxiv.org/abs/1711.05101)."""

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""

    decoupled: ClassVar[bool] = True

    def build(self, groups: Sequence[Group], offloaded: bool = False) -> Any:
        import torch

        if offloaded:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            from peftkit.engine.compiled import building

            try:
                with building("cpu_adam"):
                    return DeepSpeedCPUAdam(groups, betas=self.betas, eps=self.eps, adamw_mode=self.decoupled)
            except RuntimeError as problem:
                raise ConfigError(
                    f"--deepspeed offloads the optimizer: DeepSpeed compiles its own --optim {self.name} for that, and failed;"
                    " it needs a C++ compiler (g++) and ninja. A configuration without offload_optimizer needs neither"
                ) from problem
        kind = torch.optim.AdamW if self.decoupled else torch.optim.Adam
        return kind(groups, betas=self.betas, eps=self.eps, fused=True)


class Adam(AdamW, name="adam"):
    """Adam with weight decay inside the gradient (Kingma & Ba, 2014, https://arxiv.org/abs/1412.6980)."""

    decoupled: ClassVar[bool] = False


class AdamW8bit(AdamW, name="adamw_8bit"):
    """AdamW with its state in 8 bits, block by block (Dettmers et al., 2021, https://arxiv.org/abs/2110.02861)."""

    paged: ClassVar[bool] = False

    @property
    def state_bytes(self) -> float:
        return 2.1  # and a scale for each block

    def build(self, groups: Sequence[Group], offloaded: bool = False) -> Any:
        bnb = bitsandbytes(self.name)
        kind = bnb.optim.PagedAdamW8bit if self.paged else bnb.optim.AdamW8bit
        return kind(groups, betas=self.betas, eps=self.eps)


class PagedAdamW8bit(AdamW8bit, name="paged_adamw_8bit"):
    """8-bit AdamW whose state moves to the host when a GPU's memory is full."""

    paged: ClassVar[bool] = True


class SGD(Optimizer, name="sgd"):
    """Stochastic gradient descent, with momentum if asked for."""

    momentum: Beta = 0.0
    """Share of the last update that is kept."""
    nesterov: bool = False
    """Look one step ahead (needs momentum)."""

    @property
    def state_bytes(self) -> float:
        return 4.0 if self.momentum else 0.0

    def build(self, groups: Sequence[Group], offloaded: bool = False) -> Any:
        import torch

        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov)

    def conflicts(self, run: Any) -> Iterator[str]:
        yield from super().conflicts(run)
        if self.nesterov and not self.momentum:
            yield "--optim.nesterov looks ahead along the momentum, and --optim.momentum is 0; 0.9 is usual"


class Adagrad(Optimizer, name="adagrad"):
    """Rates shrink with the sum of squared gradients (Duchi et al., 2011, https://jmlr.org/papers/v12/duchi11a.html)."""

    eps: PositiveFloat = 1e-10
    """Added to the denominator."""

    @property
    def state_bytes(self) -> float:
        return 4.0

    def build(self, groups: Sequence[Group], offloaded: bool = False) -> Any:
        from peftkit.engine.torch_optim import LazyAdagrad

        return LazyAdagrad(groups, eps=self.eps)


class Lion(Optimizer, name="lion"):
    """The sign of a momentum (Chen et al., 2023, https://arxiv.org/abs/2302.06675); wants a third of Adam's rate or less."""

    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Weight of the momentum in the update, and its decay rate."""

    @property
    def state_bytes(self) -> float:
        return 4.0

    def build(self, groups: Sequence[Group], offloaded: bool = False) -> Any:
        from peftkit.engine.torch_optim import Lion as TorchLion

        return TorchLion(groups, betas=self.betas)


class Adafactor(Optimizer, name="adafactor"):
    """Second moments kept as a row and a column (Shazeer & Stern, 2018, https://arxiv.org/abs/1804.04235)."""

    splits: ClassVar[bool] = False

    @property
    def state_bytes(self) -> float:
        return 0.1  # a row and a column of a matrix

    def build(self, groups: Sequence[Group], offloaded: bool = False) -> Any:
        import torch

        return torch.optim.Adafactor(groups)


def bitsandbytes(choice: str) -> Any:
    """The library, or an error that names the extra."""
    try:
        import bitsandbytes as library
    except ImportError:
        raise ConfigError(f"--optim {choice} needs bitsandbytes: pip install 'peftkit[qlora]'") from None
    return library


def parameter_groups(
    model: nn.Module, optim: Optimizer, depths: Mapping[str, int], born: Mapping[str, int]
) -> list[Group]:
    """What trains, grouped by its rate and decay; no group is empty, which DeepSpeed would fail on at its first step.

    `depths` says how far from the input each parameter's layer is, `born` the stage of unfreezing at which it started
    (parameters of different stages have taken a different number of steps, so they never share a group).
    """
    groups: dict[tuple[float, float, int], Group] = {}
    top = max(depths.values(), default=0)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = peak_rate(name, optim, top - depths.get(name, top))
        decay = optim.weight_decay if decays(name, parameter) else 0.0
        key = (lr, decay, born.get(name, 0))
        label = f"lr={lr!r} weight_decay={decay!r} stage={key[2]}"
        group = groups.setdefault(
            key, {"params": [], "lr": lr, "weight_decay": decay, "peak": lr, "label": label, "names": []}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def peak_rate(name: str, optim: Optimizer, layers_above: int) -> float:
    """The rate that the first matching pattern gives, else the common one, decayed by the number of layers above."""
    rate = next((rate for pattern, rate in optim.lr_by_name.items() if re.search(pattern, name)), optim.lr)
    return float(rate * optim.layer_decay**layers_above)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, and neither to biases nor to the weights of norms, which are vectors."""
    shape = getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO-3 `shape` is (0,)
    return len(shape) > 1 and not name.endswith("bias")
