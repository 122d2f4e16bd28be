"""Layers that see no padding: between the first and the last of a stack only the rows' tokens are there, one behind the other.

Batches stay as tasks collate them, and what lies outside the stacks (embeddings, positions, head, loss) sees padded rows. A
row's numbers hang on its own tokens alone. A decoder behind an encoder has the tokens up to the last one that is read, as the
task says (`tasks.positions`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.kernels.attention import NAME, PLAIN, register
from peftkit.kernels.segments import Rows, Segments
from peftkit.models.inspect import inner, stacks
from peftkit.tasks.base import IGNORED
from peftkit.tasks.positions import asked_now

CACHES = ("past_key_values", "past_key_value", "layer_past")
TARGETS = "decoder_attention_mask"
MIXERS = (nn.Conv1d, nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.RNNBase)
"""Modules that look at a token's neighbours or at other rows."""
ACROSS = ("position_bias", "alibi", "relative_pos", "rel_pos", "relative_position_bias")
"""What layers take that stands for each pair of places."""
NEAR = {torch.float32: 1e-3, torch.float64: 1e-3}
FAR = 0.1
"""How far a token's state may be from the padded one's: layers round, in 16 bits by a hundredth; another token makes another."""


@dataclass
class Unpadded:
    """The hooks of a model whose layers see no padding."""

    model: nn.Module
    handles: list[Any] = field(default_factory=list)
    configs: list[Any] = field(default_factory=list)
    """Of the model and its parts: where the name of the attention stands."""
    proven: bool = True
    """Until then it is there, and does nothing."""
    whole: list[str] = field(default_factory=list)
    """Stacks that are told of no padding, and that see it if there is any."""
    tells: bool = True
    """Whether a decoder is told of its padding."""

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.attend(PLAIN)
        self.handles, self.configs = [], []

    def attend(self, name: str) -> None:
        """By our attention, or for a while by torch's, with which the hooks find nothing to do."""
        for config in self.configs:
            config._attn_implementation_internal = name


def unpad(model: nn.Module, proven: bool = True) -> Unpadded:
    """Hang it on a model for which `why_not` has no answer; what is not proven waits until `disagreement` finds none."""
    register()
    _, plain = inner(model)
    parts = [part for part in plain.modules() if getattr(part, "config", None) is not None]
    configs = {id(part.config): part.config for part in parts}
    hung = Unpadded(model, configs=list(configs.values()), proven=proven)
    hung.attend(NAME if proven else PLAIN)
    for stack in stacks(model):
        layers = list(model.get_submodule(stack.path).children())
        hung.handles += [layer.register_forward_pre_hook(_enter, with_kwargs=True) for layer in layers]
        # Where layers may be left out by chance the last one has not always the last word.
        for layer in layers if _drops_layers(plain) else layers[-1:]:
            hung.handles.append(layer.register_forward_hook(padded_again, with_kwargs=True))
    hung.handles.append(plain.register_forward_pre_hook(partial(_look_inside, hung), with_kwargs=True))
    hung.handles.append(plain.register_forward_hook(partial(_looked_inside, hung), always_call=True))
    return hung


def why_not(model: nn.Module) -> str | None:
    """Why the layers of this model cannot go without padding, as far as its classes tell."""
    from transformers import PreTrainedModel

    _, plain = inner(model)
    if not isinstance(plain, PreTrainedModel):
        return "it is no model of transformers"
    parts = [part for part in plain.modules() if isinstance(part, PreTrainedModel)]
    chosen = {str(part.config._attn_implementation) for part in parts} - {PLAIN}
    if chosen:
        return f"its attention is {', '.join(sorted(chosen))}, not torch's own"
    if not all(part._can_set_attn_implementation() for part in parts):
        return "its attention cannot be replaced"
    found = stacks(model)
    for stack in found:
        for layer in model.get_submodule(stack.path).children():
            asks = set(_names(layer)) & set(ACROSS)
            mixers = [type(part).__name__ for part in layer.modules() if isinstance(part, MIXERS)]
            if asks or mixers:
                return f"its layers look at places beside a token's own ({', '.join([*asks, *mixers[:1]])})"
    return None if found else "it has no stack of layers"


def disagreement(hung: Unpadded, run: Callable[[], Any]) -> str | None:
    """What `run` (a forward pass over padded rows, without gradients) shows of it: None if all tokens are as with padding."""
    hung.proven, hung.tells = False, True
    hung.attend(PLAIN)
    padded = _states(hung.model, run)
    hung.attend(NAME)
    try:
        ours = _states(hung.model, run)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as problem:
        if any(hasattr(weight, "ds_id") for weight in hung.model.parameters()):
            raise  # ZeRO-3 is in the middle of a pass that it cannot leave
        return f"{type(problem).__name__}: {problem}".splitlines()[0]
    if len(ours) != len(padded) or not ours:
        return "its layers are not run one after the other"
    hung.whole = sorted({path for path, _, segments in ours if segments is None})
    if all(segments is None for _, _, segments in ours):
        return "its layers are told of no padding"
    worst = max(_apart(one, other, segments) for (_, one, _), (_, other, segments) in zip(padded, ours, strict=True))
    near = NEAR.get(padded[0][1].dtype, FAR)
    if worst > near:
        return f"tokens differ by {worst:.1g} of their size"
    # Where the pass had no padding for a decoder nothing is known of it.
    hung.tells = not any(stack.side == "decoder" and stack.path in hung.whole for stack in stacks(hung.model))
    hung.proven = True
    hung.attend(NAME)
    return None


@torch.no_grad()
def _states(model: nn.Module, run: Callable[[], Any]) -> list[tuple[str, Tensor, Segments | None]]:
    """What leaves each stack in a pass, behind the stack's name."""
    found: list[tuple[str, Tensor, Segments | None]] = []

    def keep(path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        segments = None if _caches(layer, args, kwargs) else _segments(layer, args, kwargs)
        found.append((path, hidden.detach().clone(), segments))

    last = {stack.path: list(model.get_submodule(stack.path).children())[-1] for stack in stacks(model)}
    handles = [layer.register_forward_hook(partial(keep, path), with_kwargs=True) for path, layer in last.items()]
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
    return found


def _apart(one: Tensor, other: Tensor, segments: Segments | None) -> float:
    """The largest difference of two tokens' states, as a share of the token's."""
    if segments is not None:
        one, other = (states.flatten(0, 1)[segments.rows.index] for states in (one, other))
    one, other = one.float(), other.float()
    return float(((one - other).norm(dim=-1) / one.norm(dim=-1).clamp_min(1e-6)).max())


def _drops_layers(model: Any) -> bool:
    return any(getattr(model.config, name, 0) for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"))


def _names(layer: nn.Module) -> list[str]:
    kind: Any = type(layer)
    return _parameters(kind)


@lru_cache(maxsize=64)
def _parameters(kind: Any) -> list[str]:
    """What a kind of layer takes, by its class: an instance may have another method in its place."""
    return list(inspect.signature(kind.forward).parameters)[1:]


def _segments(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Segments | None:
    """What a layer is told of the rows, if they are without padding."""
    found = kwargs.get("attention_mask", dict(zip(_names(layer), args, strict=False)).get("attention_mask"))
    return found if isinstance(found, Segments) else None


def _caches(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a layer is given keys and values of former tokens, or room for its own."""
    named = dict(zip(_names(layer), args, strict=False)) | kwargs
    return any(named.get(name) is not None for name in CACHES)


def _look_inside(hung: Unpadded, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Whoever wants the states between the layers gets them padded; else a decoder is told which of its tokens are needed."""
    wanted = ("output_hidden_states", "output_attentions")
    config: Any = model.config
    if any(kwargs.get(name, getattr(config, name, False)) for name in wanted):
        hung.attend(PLAIN)
    needed = None if config._attn_implementation != NAME or not hung.tells else _needed(kwargs)
    if needed is None or TARGETS not in _names(model) or kwargs.get(TARGETS) is not None:
        return None
    # Where the decoder has a configuration of its own, that may ask for a cache, which a pass over whole targets has no use for.
    spared = {"use_cache": False} if "use_cache" in _names(model) else {}
    return args, {**spared, **kwargs, TARGETS: needed}


def _needed(kwargs: dict[str, Any]) -> Tensor | None:
    """(rows, length), 1 up to the last of a row's tokens that is read: of a decoder's tokens none looks at a later one."""
    asked, ids = asked_now(), kwargs.get("decoder_input_ids")
    if asked is None or ids is None or ids.shape != asked.wanted.labels.shape:
        return None
    places = torch.arange(ids.shape[1], device=ids.device)
    # A row of which nothing is read keeps its first one, so that there is something to compute in each process.
    last = (places * (asked.wanted.labels != IGNORED)).amax(1, keepdim=True)
    return (places <= last).long()


def _looked_inside(hung: Unpadded, model: nn.Module, args: Any, output: Any) -> None:
    hung.attend(NAME if hung.proven else PLAIN)


def _enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before a layer: what comes padded is gathered."""
    segments, names = _segments(layer, args, kwargs), _names(layer)
    named = dict(zip(names, args, strict=False)) | kwargs
    if segments is None or _caches(layer, args, kwargs):
        return None
    rows, encoded = segments.rows, ("encoder_hidden_states", "encoder_attention_mask")
    states, seen = (named.get(name) for name in encoded)
    if states is not None:
        seen = segments.beside(states) if seen is None else seen
        if not isinstance(seen, Segments):
            return None  # a mask that is not understood: the layer stays padded
        if seen.keys is seen.rows:
            named |= dict(zip(encoded, (seen.rows.gathered(states), seen.across(rows)), strict=True))
    gathered = {name: value if name in encoded else _gathered(value, rows) for name, value in named.items()}
    return tuple(gathered.pop(name) for name in names[: len(args)]), gathered


def _gathered(value: Any, rows: Rows) -> Any:
    """`value` with what is in it for each place of the padded rows taken at the tokens alone."""
    if isinstance(value, tuple | list):
        return type(value)(_gathered(part, rows) for part in value)
    if not rows.holds(value):
        return value
    return rows.gather(value) if value.requires_grad else rows.gathered(value)


def padded_again(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """What a layer gave, with padding if it was called without."""
    segments = _segments(layer, args, kwargs)
    hidden = output if isinstance(output, Tensor) else output[0]
    if segments is None or hidden.shape[:2] != (1, segments.rows.tokens):
        return output
    whole = segments.rows.scatter(hidden)
    return whole if isinstance(output, Tensor) else (whole, *output[1:])
