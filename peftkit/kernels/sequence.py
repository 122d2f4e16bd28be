"""Long rows on several processes: each computes some of a row's places, and for attention all places of some heads.

Between the first and the last layer a process holds every N-th part of each row in one piece; attention turns that, by an
exchange among the N processes, into whole rows of every N-th head, and back (DeepSpeed-Ulysses, Jacobs et al., 2023,
https://arxiv.org/abs/2309.14509). What lies outside the layers sees whole rows, of which this process learns its own part
(`own_labels`): the sum over the processes is the loss of the whole row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from peftkit.errors import ConfigError
from peftkit.kernels.attention import PLAIN
from peftkit.kernels.unpadded import why_not
from peftkit.models.inspect import inner, stacks
from peftkit.tasks.base import IGNORED

NAME = "peftkit_sequence"


@dataclass
class Sequence:
    """A model whose layers share each row among the processes of `group`."""

    group: Any
    processes: int
    process: int
    """Which part is this process's."""
    length: int = 0
    """Of the rows that are computed now, padding included; 0 where nothing is shared, as in an evaluation."""
    handles: list[Any] = field(default_factory=list)
    configs: list[Any] = field(default_factory=list)

    @property
    def part(self) -> int:
        """Places that a process holds; the last one's may be none of the row's."""
        return -(-self.length // self.processes)

    def own(self, value: Tensor) -> Tensor:
        """(rows, length, ...) -> (rows, part, ...), with zeros behind the row's end."""
        start = min(self.process * self.part, self.length)
        mine = value[:, start : start + self.part]
        return pad(mine, (0, 0) * (value.ndim - 2) + (0, self.part - mine.shape[1]))

    def put_back(self, mine: Tensor) -> Tensor:
        """(rows, part, ...) -> (rows, length, ...), with zeros where other processes' parts are."""
        before = self.process * self.part
        after = self.processes * self.part - before - self.part
        return pad(mine, (0, 0) * (mine.ndim - 2) + (before, after))[:, : self.length]

    def heads(self, states: Tensor) -> Tensor:
        """(rows, heads, part, width) of this process's places -> (rows, heads / processes, length, width) of all places."""
        rows, heads, part, width = states.shape
        each = states.view(rows, self.processes, heads // self.processes, part, width).transpose(0, 1)
        return self._exchanged(each).permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : self.length]

    def places(self, states: Tensor) -> Tensor:
        """(rows, length, heads / processes, width) -> (rows, part, heads, width): the way back."""
        rows, _, heads, width = states.shape
        whole = pad(states, (0, 0, 0, 0, 0, self.processes * self.part - self.length))
        each = whole.view(rows, self.processes, self.part, heads, width).transpose(0, 1)
        return self._exchanged(each).permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _exchanged(self, each: Tensor) -> Tensor:
        """The k-th of what all processes have for this one, (processes, ...)."""
        out: Tensor = _Exchange.apply(each, self.group)  # type: ignore[no-untyped-call]
        return out

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        for config in self.configs:
            config._attn_implementation_internal = PLAIN
        self.handles, self.configs = [], []


class _Exchange(torch.autograd.Function):
    """Process k's part j becomes process j's part k; the gradients go the same way back."""

    @staticmethod
    def forward(ctx: Any, each: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _exchange(each, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchange(grad, ctx.group), None


def _exchange(each: Tensor, group: Any) -> Tensor:
    each = each.contiguous()
    out = torch.empty_like(each)
    dist.all_to_all_single(out, each, group=group)
    return out


def share_rows(model: nn.Module, processes: int, process: int, world: int) -> Sequence:
    """Hang it on a model: neighbours, `processes` of the `world`'s at a time, share rows in training. All processes call it.

    Raises ConfigError for a model whose layers do more than look at their own place and attend, or with too few heads.
    """
    if why := why_not(model):
        raise ConfigError(f"--batch.sequence_parallel {processes}: rows cannot be shared: {why}")
    _, plain = inner(model)
    parts = [part for part in plain.modules() if getattr(part, "config", None) is not None]
    configs: list[Any] = list({id(part.config): part.config for part in parts}.values())
    heads = min(int(getattr(config, "num_attention_heads", 0) or 0) for config in configs)
    if heads % processes:
        raise ConfigError(
            f"--batch.sequence_parallel {processes}: the model's {heads} attention heads cannot be dealt to so many processes"
        )
    groups = [dist.new_group(list(range(at, at + processes))) for at in range(0, world, processes)]
    hung = Sequence(groups[process // processes], processes, process % processes, configs=configs)
    register(hung)
    for config in configs:
        config._attn_implementation_internal = NAME
    for stack in stacks(model):
        layers = list(model.get_submodule(stack.path).children())
        hung.handles += [layer.register_forward_pre_hook(partial(_enter, hung), with_kwargs=True) for layer in layers]
        hung.handles.append(layers[-1].register_forward_hook(partial(_leave, hung)))
    hung.handles.append(plain.register_forward_pre_hook(partial(_begin, hung), with_kwargs=True))
    return hung


def own_labels(batch: dict[str, Any], processes: int, process: int) -> dict[str, Any]:
    """The batch with those labels alone that this process's part of each row predicts: the label after each of its places."""
    labels = batch["labels"]
    part = -(-labels.shape[1] // processes)
    mine = slice(process * part + 1, (process + 1) * part + 1)
    own = torch.full_like(labels, IGNORED)
    own[:, mine] = labels[:, mine]
    return {**batch, "labels": own}


def register(hung: Sequence) -> None:
    """Make the attention over shared rows known to transformers."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, partial(attention, hung))
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def attention(
    hung: Sequence, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **how: Any
) -> tuple[Tensor, Any]:
    """As transformers' attention functions, over this process's places: (rows, heads, part, width) each."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    attend: Any = sdpa_attention_forward
    if not hung.length:
        whole: tuple[Tensor, Any] = attend(module, query, key, value, attention_mask, **how)
        return whole
    by: Any = module
    if key.shape[1] % hung.processes:  # fewer than processes: each gets those that its queries look at
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
        by = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    query, key, value = (hung.heads(states) for states in (query, key, value))
    made, _ = attend(by, query, key, value, attention_mask, **how)
    return hung.places(made), None


def _begin(hung: Sequence, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Rows are shared where something is learnt; in an evaluation each process has rows of its own."""
    rows = next(value for value in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if value is not None)
    hung.length = rows.shape[1] if model.training and rows.shape[1] > 1 else 0


def _enter(hung: Sequence, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before a layer: what there is for each place of the whole rows is cut down to this process's part."""
    if not hung.length:
        return None
    return tuple(_own(hung, value) for value in args), {name: _own(hung, value) for name, value in kwargs.items()}


def _own(hung: Sequence, value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_own(hung, part) for part in value)
    holds = isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == hung.length
    return hung.own(value) if holds else value


def _leave(hung: Sequence, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if not hung.length:
        return None
    hidden = output if isinstance(output, Tensor) else output[0]
    whole = hung.put_back(hidden)
    return whole if isinstance(output, Tensor) else (whole, *output[1:])
