"""An output layer and its cross-entropy together, a block of positions at a time: nothing of size positions x vocabulary is kept.

For logits y = cap tanh(scale (W h + b) / cap) + shift (the usual y = W h + b has no cap, no shift and the scale 1) the loss of a
label t is log sum exp y - y_t, and its gradient for the logits softmax(y) - onehot(t): both are known as soon as a block's
logits are. So the gradient of the hidden states is computed in the forward pass, for one loss each, and scaled by what comes
from above; the same for the layer's own weights, as long as what comes from above is one number for all (else a second pass).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftkit.kernels.products import product, product_back

BLOCK = 31 * 2**20
"""Bytes of a block of fp32 logits. glibc maps what is over 32 MiB anew each time: its pages cost 1.7 ns a logit, half a softmax."""


TILE = (512, 2048)
"""Positions and words of a tile: 4 MiB of fp32 logits. With 128k words of width 256 a core makes 88 GFLOP/s so, of 100 that it
can; in blocks over all words 45, which read the whole weight again every 64 positions."""


@dataclass(frozen=True)
class After:
    """What a model does to its logits: cap tanh(scale x / cap) + shift."""

    scale: float = 1.0
    cap: float | None = None
    shift: Tensor | None = None

    @property
    def nothing(self) -> bool:
        """Whether it leaves them as they are."""
        return self.scale == 1.0 and self.cap is None and self.shift is None

    def of(self, logits: Tensor) -> Tensor:
        """Of fp32 logits, changed in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits if self.shift is None else logits.add_(self.shift.to(logits))

    def slope(self, after: Tensor) -> Tensor | None:
        """The derivative at each logit, from what `of` gave; None where it is 1 everywhere."""
        if self.cap is not None:
            bare = after if self.shift is None else after - self.shift.to(after)
            return (1 - (bare / self.cap).square()).mul_(self.scale)
        return None if self.scale == 1.0 else after.new_tensor(self.scale)


@dataclass(frozen=True)
class Layer:
    """The output layer, and what follows it."""

    weight: Tensor
    """(vocabulary, width)"""
    bias: Tensor | None
    after: After

    def logits(self, hidden: Tensor) -> Tensor:
        """(targets, vocabulary) in fp32; the product in the weight's own format."""
        return self.after.of(product(hidden, self.weight, self.bias).float())


def rows_of_a_block(vocabulary: int) -> int:
    """A power of two, so that few shapes occur."""
    most = max(1, BLOCK // (4 * vocabulary))
    return int(2 ** (most.bit_length() - 1))


def token_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, after: After, alike: bool = True, rows: int = 0
) -> Tensor:
    """(targets,): fp32 cross-entropy of `labels` (targets,) for `hidden` (targets, width), with a graph to all three tensors.

    `alike` promises that the losses will be weighted alike, so that the weight's gradient is taken at once; it is right
    without it, too. `rows` is the size of a block.
    """
    size = rows or rows_of_a_block(len(weight))
    found: Tensor = _TokenLosses.apply(hidden, weight, bias, labels, after, alike, size)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def token_scores(layer: Layer, hidden: Tensor, labels: Tensor, rows: int = 0) -> tuple[Tensor, Tensor]:
    """The losses (targets,) and whether each label is the likeliest (the first of several that are); no graph."""
    losses = hidden.new_empty(len(labels), dtype=torch.float32)
    correct = torch.empty_like(labels, dtype=torch.bool)
    for at in blocks(len(labels), rows or rows_of_a_block(len(layer.weight))):
        logits = layer.logits(hidden[at])
        correct[at] = logits.argmax(-1) == labels[at]
        losses[at] = _losses_of(logits, labels[at])[0]
    return losses, correct


def blocks(count: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def _losses_of(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The losses, and the softmax in the logits' place."""
    most = logits.amax(-1)
    said = logits.gather(-1, labels[:, None])[:, 0]
    chances = torch._softmax(logits, -1, False, out=logits)
    # The largest chance is exp(0) / sum: never so small that its logarithm were lost.
    return most - said - chances.amax(-1).log(), chances


@dataclass
class _Gradients:
    """Sums over blocks of what one loss each contributes; None where it is not asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _through(
    layer: Layer,
    hidden: Tensor,
    labels: Tensor,
    rows: int,
    asked: tuple[bool, bool, bool],
    weights: Tensor | None = None,
) -> tuple[Tensor, _Gradients]:
    """All blocks: their losses, and gradients for hidden states, weight and bias as far as `asked`, each loss times `weights`."""
    losses = hidden.new_empty(len(labels), dtype=torch.float32)
    made = _Gradients(
        torch.empty_like(hidden) if asked[0] else None,
        layer.weight.new_zeros(layer.weight.shape, dtype=torch.float32) if asked[1] else None,
        layer.weight.new_zeros(len(layer.weight), dtype=torch.float32) if asked[2] else None,
    )
    for at in blocks(len(labels), rows):
        logits = layer.logits(hidden[at])
        slope = layer.after.slope(logits) if any(asked) else None
        losses[at], chances = _losses_of(logits, labels[at])
        if any(asked):
            chances.scatter_add_(-1, labels[at][:, None], chances.new_full((len(chances), 1), -1.0))
            steep = chances if slope is None else chances.mul_(slope)
            _add(made, at, steep if weights is None else steep.mul_(weights[at][:, None]), layer.weight, hidden[at])
    return losses, made


def _add(made: _Gradients, at: slice, steep: Tensor, weight: Tensor, hidden: Tensor) -> None:
    """A block's part, from the gradient of its logits."""
    low = steep.to(weight.dtype)
    if made.hidden is not None:
        made.hidden[at] = product_back(low, weight)
    if made.weight is not None:
        if low.dtype == made.weight.dtype:
            made.weight.addmm_(low.t(), hidden)
        else:  # summed in fp32, however many blocks there are
            made.weight += low.t() @ hidden
    if made.bias is not None:
        made.bias += steep.sum(0)


def _past_frozen(layer: Layer, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses, and the hidden states' gradient, past a weight that does not train, in tiles: a few positions by a part of the
    vocabulary.

    Each tile's softmax is over its own words; what it gives is weighed by its share of all, as flash attention does (Dao et
    al., 2022). So a part of the weight is read once for both products, while it is in the cache.
    """
    losses, made = hidden.new_empty(len(labels), dtype=torch.float32), torch.empty_like(hidden)
    rows, width = TILE
    for at in blocks(len(labels), rows):
        total = torch.full_like(losses[at], float("-inf"))
        said, summed = torch.zeros_like(total), torch.zeros_like(hidden[at], dtype=torch.float32)
        for part in blocks(len(layer.weight), width):
            size, own, pulled = _tile(layer, hidden[at], labels[at], part)
            both = torch.logaddexp(total, size)
            summed.mul_((total - both).exp_()[:, None]).addcmul_(pulled, (size - both).exp_()[:, None])
            total, said = both, said + own
        losses[at] = total - said
        made[at] = summed - layer.weight[labels[at]]
    return losses, made


def _tile(layer: Layer, hidden: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Of the words of a part: log sum exp of their logits, the label's logit (else 0), the mean of their weights by softmax."""
    weight, inside = layer.weight[part], (labels >= part.start) & (labels < part.stop)
    logits = product(hidden, weight, None if layer.bias is None else layer.bias[part]).float()
    own = logits.gather(-1, (labels - part.start).clamp(0, len(weight) - 1)[:, None])[:, 0].where(inside, 0)
    most = logits.amax(-1)
    chances = torch._softmax(logits, -1, False, out=logits)
    return most - chances.amax(-1).log(), own, product_back(chances.to(weight.dtype), weight).float()


class _TokenLosses(torch.autograd.Function):
    """See `token_losses`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        after: After,
        alike: bool,
        rows: int,
    ) -> Tensor:
        needs = ctx.needs_input_grad
        own = alike and (needs[1] or needs[2])
        layer = Layer(weight, bias, after)
        if needs[0] and not needs[1] and not needs[2] and after.nothing:
            losses, unit = _past_frozen(layer, hidden, labels)
            ctx.save_for_backward(unit, None, None, None, None)
            return losses
        losses, made = _through(layer, hidden, labels, rows, (needs[0], own and needs[1], own and needs[2]))
        again = (hidden, weight, bias, labels) if needs[1] or needs[2] else (None, None, None, None)
        ctx.save_for_backward(made.hidden, *again)
        # Without a name of their own in the graph: they are as large as the weight, and gone as soon as they are used.
        ctx.made, ctx.after, ctx.rows = made if own else None, after, rows
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *above: Tensor) -> tuple[Any, ...]:
        (upstream,) = above
        unit, hidden, weight, bias, labels = ctx.saved_tensors
        needs = ctx.needs_input_grad
        for_hidden = unit * upstream[:, None].to(unit.dtype) if needs[0] else None
        if not (needs[1] or needs[2]):
            return for_hidden, None, None, None, None, None, None
        made: _Gradients | None = ctx.made
        if made is not None and bool((upstream == upstream[:1]).all()):
            scale = upstream[:1].sum()  # of no targets: 0
            made = _Gradients(None, *(None if one is None else one.mul_(scale) for one in (made.weight, made.bias)))
        else:
            layer = Layer(weight, bias, ctx.after)
            _, made = _through(layer, hidden, labels, ctx.rows, (False, needs[1], needs[2]), upstream)
        ctx.made = None
        own = [None if one is None else one.to(weight.dtype) for one in (made.weight, made.bias)]
        return for_hidden, *own, None, None, None, None
