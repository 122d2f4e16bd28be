"""What a transformers model is made of: stacks of layers, embeddings, head, norms, linear layers; found, not listed per model.

    >>> [f"{stack.path} {stack.layers} {stack.side}" for stack in stacks(model)]
    ['model.encoder.layers 6 encoder', 'model.decoder.layers 6 decoder']

All of it works on plain and PEFT-wrapped models, on the meta device, and under ZeRO-3, where shapes are `(0,)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Side = Literal["encoder", "decoder"]
Part = Literal["embeddings", "layer", "after", "head"]


@dataclass(frozen=True)
class Stack:
    """A list of layers that run one after the other."""

    path: str
    """Name of the module list: `model.layers`."""
    layers: int
    """How many sets of weights it has (ALBERT runs its only one several times)."""
    side: Side


@dataclass(frozen=True)
class Place:
    """Where a parameter lies. A tied one lies in several places at once and is counted as an embedding."""

    part: Part
    """`after` is what follows the layers inside the base model: the last norm, a pooler, a projection."""
    sides: frozenset[Side]
    """The sides that use it, and no side for the head; embeddings that both sides share have both."""
    stack: Stack | None = None
    """The stack that it is in or beside."""
    layer: int | None = None
    """Which layer of the stack it is in, from 0."""
    is_head_too: bool = False
    """Whether it is an embedding that the head is tied to."""


def places(model: nn.Module) -> dict[str, Place]:
    """Where each parameter lies, under the names of `model.named_parameters()`."""
    found = stacks(model)
    heads = head_paths(model)
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    order = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    spans = {stack: _span(stack, order) for stack in found}
    lookups, last = _embedding_tables(model), _closing_norms(model)
    single = {
        name: _place(name, at, spans, heads, _parent(name) in lookups, _under(name, last))
        for at, name in enumerate(order)
    }
    return {names[0]: _together([single[name] for name in names]) for names in aliases.values()}


def stacks(model: nn.Module) -> list[Stack]:
    """The stacks of layers, encoders before decoders."""
    from torch import nn

    prefix, plain = inner(model)
    lists: dict[str, nn.Module] = {}
    for path, module in plain.named_modules():
        outermost = not any(path.startswith(f"{outer}.") for outer in lists)
        if outermost and isinstance(module, nn.ModuleList) and _attends(module):
            lists[path] = module
    if not lists:  # no attention at all, as in Mamba or ConvNeXt: its biggest list
        lists = dict(_biggest_list(plain))
    found = [Stack(prefix + path, len(list(module.children())), _side(plain, module)) for path, module in lists.items()]
    return sorted(found, key=lambda stack: stack.side == "decoder")


def head_paths(model: nn.Module) -> list[str]:
    """Names of the modules and bare parameters that make up the head: what lies outside the base model."""
    prefix, plain = inner(model)
    return [prefix + path for path in _head(plain)]


def depth_of(model: nn.Module) -> dict[str, int]:
    """How deep each parameter lies: 0 embeddings, 1..n the layers (a decoder's follow the encoder's), n+1 what comes after."""
    found = stacks(model)
    below: dict[Stack | None, int] = {None: 0}
    depth = 0
    for stack in found:
        below[stack] = depth
        depth += stack.layers
    last = found[-1] if found else None

    def of(place: Place) -> int:
        if place.part == "embeddings":
            return 0
        if place.layer is not None:
            return below[place.stack] + place.layer + 1
        if place.part == "head" or place.stack in (last, None):
            return depth + 1
        return below[place.stack] + (place.stack.layers if place.stack else 0)

    return {name: of(place) for name, place in places(model).items()}


def linear_layers(model: nn.Module, head: bool = False) -> dict[str, nn.Module]:
    """The linear layers by name (also 4-bit ones, and GPT-2's transposed Conv1D), without the head's unless asked for."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    outside = () if head else tuple(head_paths(model))
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not _under(path, outside)
    }


def embedding_ends(model: Any) -> list[nn.Module]:
    """What looks tokens up and what scores them, as far as the model has them: a ResNet has neither, and says so by an error."""
    try:
        first = model.get_input_embeddings()
    except NotImplementedError:
        first = None
    return [end for end in (first, model.get_output_embeddings()) if end is not None]


def convolutions(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions that mix all channels, by name, without the head's (one by one or in groups they are small already)."""
    from torch import nn

    outside = tuple(head_paths(model))
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == 1 and not _under(path, outside)
    }


def norm_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters of norms (layer norm, RMS norm, batch norm ...)."""
    names: set[str] = set()
    for path, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            names.update(_join(path, name) for name, _ in module.named_parameters(recurse=False))
    return names


@dataclass(frozen=True)
class Count:
    """Numbers of parameters."""

    total: int
    trainable: int

    @property
    def share(self) -> float:
        """Trainable share, 0 to 1."""
        return self.trainable / self.total if self.total else 0.0


def count(model: nn.Module) -> Count:
    """How many parameters there are and how many of them train; a tied one counts once."""
    sizes = [(elements(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return Count(sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains))


def elements(parameter: Any) -> int:
    """The number of weights that a parameter stands for: not the packed bytes of a 4-bit one, nor ZeRO-3's empty rest."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return math.prod(state.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def inner(model: nn.Module) -> tuple[str, nn.Module]:
    """The transformers model inside wrappers (PEFT's, DeepSpeed's), and the prefix that they add to its names."""
    from transformers import PreTrainedModel

    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            return _join(path, ""), module
    return "", model


def _attends(layers: nn.Module) -> bool:
    kinds = {type(module).__name__.lower() for module in layers.modules()}
    return any("attention" in kind or "attn" in kind for kind in kinds)


def _biggest_list(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    from torch import nn

    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if lists:
        yield max(lists, key=lambda entry: sum(elements(parameter) for parameter in entry[1].parameters()))


def _side(model: nn.Module, layers: nn.Module) -> Side:
    """An encoder-decoder knows its halves; otherwise causal attention makes a decoder."""
    encodes, decodes = (_holds(half, layers) for half in _halves(model))
    if encodes != decodes:
        return "decoder" if decodes else "encoder"
    flags = [module.is_causal for module in layers.modules() if hasattr(module, "is_causal")]
    if flags:
        return "decoder" if any(flags) else "encoder"
    return "decoder" if _only_generates(_owner(model, layers)) else "encoder"


def _halves(model: Any) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder; either is the whole model where it has no such half, so only a difference says something."""
    asks = hasattr(model, "get_encoder") and hasattr(model, "get_decoder")
    return (model.get_encoder(), model.get_decoder()) if asks else (model, model)


def _owner(model: nn.Module, layers: nn.Module) -> nn.Module:
    """The smallest transformers model around `layers`: in a composite one it has the configuration that counts."""
    from transformers import PreTrainedModel

    around = [module for module in model.modules() if isinstance(module, PreTrainedModel) and _holds(module, layers)]
    return around[-1] if around else model


def _only_generates(model: nn.Module) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    config = getattr(model, "config", None)
    if getattr(config, "is_decoder", False):
        return True
    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _head(model: nn.Module) -> list[str]:
    children: dict[str, Any] = dict(model.named_children()) | dict(model.named_parameters(recurse=False))
    base = getattr(model, "base_model", model)
    if base is not model:
        return [name for name, child in children.items() if not _holds(child, base)]
    if _is_bare(model):
        return []
    # Here the halves hang in the model itself (T5 with its language head): the head is what follows the last of them.
    names = list(children)
    bodies = [at for at, child in enumerate(children.values()) if _has_layers(child)]
    last = bodies[-1] if bodies else len(names) - 1
    if names[last + 1 :]:
        return names[last + 1 :]
    body = children[names[last]]  # an EncoderDecoderModel's decoder brings a head of its own
    return [_join(names[last], path) for path in _head(body)] if _speaks(body) else []


def _speaks(module: Any) -> bool:
    return hasattr(module, "get_output_embeddings") and module.get_output_embeddings() is not None


def _is_bare(model: nn.Module) -> bool:
    from transformers import MODEL_MAPPING, PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return True
    bare = MODEL_MAPPING.get(type(model.config), None)
    return type(model) in (bare if isinstance(bare, tuple) else (bare,))


def _has_layers(module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.Module) and any(isinstance(part, nn.ModuleList) for part in module.modules())


def _holds(module: Any, part: nn.Module) -> bool:
    return any(candidate is part for candidate in module.modules()) if hasattr(module, "modules") else False


def _span(stack: Stack, order: list[str]) -> tuple[int, int]:
    """Where the stack's parameters stand among all: the first and the last."""
    inside = [at for at, name in enumerate(order) if name.startswith(f"{stack.path}.")]
    return (inside[0], inside[-1]) if inside else (0, -1)


def _place(
    name: str, at: int, spans: dict[Stack, tuple[int, int]], heads: list[str], is_table: bool, closes: bool
) -> Place:
    if _under(name, heads):
        return Place("head", frozenset())
    for stack in spans:
        if name.startswith(f"{stack.path}."):
            layer = int(name.removeprefix(f"{stack.path}.").split(".")[0])
            return Place("layer", frozenset([stack.side]), stack, layer)
    near = _beside(name, at, spans)
    if near is None:
        return Place("embeddings" if is_table else "after", frozenset())
    own = name.removeprefix(_common(name, near.path)).lower()
    # Registration follows the data, nearly: BART's embedding norm stands after the layers, OPT's final norm before them.
    feeds = not closes and "final" not in own and (at < spans[near][0] or is_table or "emb" in own)
    return Place("embeddings" if feeds else "after", frozenset([near.side]), near)


def _beside(name: str, at: int, spans: dict[Stack, tuple[int, int]]) -> Stack | None:
    """The stack with which the name shares most of its path; of several the one just before it, else the one after it."""
    if not spans:
        return None
    shared = {stack: len(_common(name, stack.path)) for stack in spans}
    near = [stack for stack in spans if shared[stack] == max(shared.values())]
    before = [stack for stack in near if spans[stack][1] < at]
    return max(before, key=lambda stack: spans[stack]) if before else min(near, key=lambda stack: spans[stack])


def _common(first: str, second: str) -> str:
    """The path that two names share: `a.b.c`, `a.b.d` -> `a.b.`."""
    shared = 0
    for left, right in zip(first.split("."), second.split("."), strict=False):
        if left != right:
            break
        shared += len(left) + 1
    return first[:shared]


def _together(tied: list[Place]) -> Place:
    """One place for a parameter with several names: an embedding before anything else, the head last."""
    body = [place for place in tied if place.part != "head"]
    if not body:
        return tied[0]
    first = next((place for place in body if place.part == "embeddings"), body[0])
    sides = frozenset(side for place in body for side in place.sides)
    return Place(first.part, sides, first.stack, first.layer, is_head_too=len(body) < len(tied))


def _embedding_tables(model: nn.Module) -> set[str]:
    from torch import nn

    return {path for path, module in model.named_modules() if isinstance(module, nn.Embedding)}


def _closing_norms(model: nn.Module) -> list[str]:
    """Norms of the speech encoders that transformers calls stable: registered before their layers, they follow them."""
    stable = (path for path, module in model.named_modules() if type(module).__name__.endswith("StableLayerNorm"))
    return [_join(path, "layer_norm") for path in stable]


def _under(name: str, paths: list[str] | tuple[str, ...]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
