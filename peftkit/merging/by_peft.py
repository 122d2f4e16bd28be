"""Any merge that PEFT can do, by PEFT's own layers: they stand on a hollow model, and each is given its base weights when its
turn comes.

Every kind of adapter that PEFT merges (LoRA with DoRA, embeddings, convolutions, ...; LoHa, IA3, OFT, ...), and several
LoRA adapters combined by its `add_weighted_adapter`. What comes out is what PEFT computes, to the last bit in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import ConfigError, ExportError, ModelError
from peftkit.merging.adapter import PREFIX, Adapter
from peftkit.merging.tensors import Stored
from peftkit.strategies.library import asking_no_other, peft

MIXED = "combined"


@dataclass(frozen=True)
class Combine:
    """How several adapters become one; see PEFT's `add_weighted_adapter`."""

    method: str
    weights: tuple[float, ...]
    density: float | None = None
    sign: str = "total"
    rank: int | None = None
    seed: int = 0
    """Of what DARE draws."""


def stand(model: Any, adapters: Sequence[Adapter], afresh: bool = True) -> Any:
    """The model with every adapter on it, their weights not yet read.

    `afresh`: whether those that begin from the base's weights (PiSSA) leave these as they are; a hollow model has none.
    """
    library = peft()
    unknown = next((one for one in adapters if one.kind not in library.mapping.PEFT_TYPE_TO_TUNER_MAPPING), None)
    if unknown is not None:
        raise ModelError(
            f"--adapter {unknown.folder} is of the kind {unknown.kind}, which the installed PEFT ({library.__version__})"
            " does not have"
        )
    adapted = None
    for number, adapter in enumerate(adapters):
        with asking_no_other(model), _fitting(adapter):
            config = library.PeftConfig.from_peft_type(**{**adapter.config, "inference_mode": True})
            _check_known(adapter, config)
            if afresh and hasattr(config, "init_lora_weights"):
                config.init_lora_weights = True
            if adapted is None:
                adapted = library.get_peft_model(model, config, adapter_name=f"a{number}")
            else:
                adapted.add_adapter(f"a{number}", config)
    return adapted


def _check_known(adapter: Adapter, config: Any) -> None:
    strange = [name for name, value in adapter.config.items() if value and not hasattr(config, name)]
    if strange:
        raise ModelError(
            f"--adapter {adapter.folder} sets {', '.join(strange)}, which the installed PEFT ({peft().__version__}) does not"
            " know: a newer one made it"
        )


def load(adapted: Any, adapters: Sequence[Adapter], known: Sequence[str]) -> dict[str, Stored]:
    """Put the adapters' weights in place; returns the tensors of the base that they have whole (biases, embeddings), by name."""
    own: dict[str, Stored] = {}
    copied = tuple(f"{name}." for name, module in _modules(adapted) if saved(module) is not None)
    for number, adapter in enumerate(adapters):
        plain = {name: name.replace(".base_layer.", ".") for name in adapter.tensors}
        whole = {name: bare for name, bare in plain.items() if bare in known and not bare.startswith(copied)}
        own |= {bare: adapter.tensors[name] for name, bare in whole.items()}
        rest = {
            name: one
            for name, one in adapter.tensors.items()
            if name not in whole and not _is_said_again(name, adapter)
        }
        held = {f"{PREFIX}{name}": one.read() for name, one in rest.items()}
        with _fitting(adapter):
            result = peft().set_peft_model_state_dict(adapted, held, adapter_name=f"a{number}")
        _check_all(adapter, result.unexpected_keys, _lacking(adapted, f"a{number}", result.missing_keys))
    return own


def _is_said_again(name: str, adapter: Adapter) -> bool:
    """Of a module that the adapter has whole, PEFT at times saves what it was before as well, or itself under a second name."""
    twice = ".modules_to_save." in name and name.replace(".modules_to_save.", ".") in adapter.tensors
    return twice or ".original_module." in name


def _lacking(adapted: Any, adapter: str, missing: Sequence[str]) -> list[str]:
    """Of the names that were not read those that should have been: the adapter's own, and no second name of what was read."""
    prefix = peft().mapping.PEFT_TYPE_TO_PREFIX_MAPPING.get(adapted.peft_config[adapter].peft_type, "")
    state = adapted.state_dict()
    there = {state[name].data_ptr() for name in state.keys() - set(missing)}
    return [
        name
        for name in missing
        if f".{adapter}" in name and (prefix in name or "token_adapter" in name) and state[name].data_ptr() not in there
    ]


def _check_all(adapter: Adapter, strange: Sequence[str], lacking: Sequence[str]) -> None:
    if strange:
        raise ModelError(
            f"--adapter {adapter.folder} belongs to another base: {len(strange)} of its weights fit nothing in --base,"
            f" such as {strange[0].removeprefix(PREFIX)}"
        )
    if lacking:
        raise ModelError(
            f"--adapter {adapter.folder} is incomplete: {len(lacking)} weights that its settings ask for are missing,"
            f" such as {lacking[0].removeprefix(PREFIX)}"
        )


@contextmanager
def _fitting(adapter: Adapter) -> Iterator[None]:
    """What PEFT says of an adapter that does not fit the model becomes a sentence."""
    try:
        yield
    except KeyError as problem:
        name = str(problem).strip("'\"").removeprefix(PREFIX)
        raise ModelError(f"--adapter {adapter.folder} is incomplete: it has no {name}") from problem
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError, ImportError) as problem:
        raise ModelError(f"--adapter {adapter.folder} does not fit --base: {first_line(problem)}") from problem


def mix(adapted: Any, adapters: Sequence[Adapter], how: Combine, plain: Collection[str]) -> None:
    """Let one adapter take the place of several.

    ConfigError for adapters that PEFT would combine by halves, or not at all: those with tensors that are neither products
    nor as in the base (`plain`).
    """
    parts = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
    for adapter in adapters:
        others = [name for name in adapter.tensors if not name.endswith(parts)]
        if adapter.kind != "LORA" or any(name.replace(".base_layer.", ".") not in plain for name in others):
            raise ConfigError(
                f"--adapter {adapter.folder} is more than the products of LoRA (it has a head, an embedding, biases, DoRA's"
                " magnitudes, or is of another kind), and such adapters cannot be combined; merge one after the other"
            )
    torch.manual_seed(how.seed)
    words = {"density": how.density, "majority_sign_method": how.sign, "svd_rank": how.rank}
    every = [f"a{number}" for number in range(len(adapters))]
    try:
        adapted.add_weighted_adapter(every, list(how.weights), MIXED, combination_type=how.method, **words)
    except (ValueError, TypeError, RuntimeError) as problem:
        raise ConfigError(f"--combine {how.method}: {first_line(problem)}") from problem
    adapted.set_adapter(MIXED)


class Changes:
    """The modules of an adapted model that change the base's weights, and what becomes of these weights.

    `read` gives a weight of the base by its name, in fp32.
    """

    def __init__(self, adapted: Any, read: Callable[[str], Tensor]) -> None:
        self.read = read
        self.targets: dict[str, Any] = {}
        for name, module in _modules(adapted):
            if not name.startswith(tuple(f"{outer}." for outer in self.targets)) and _is_target(module):
                self.targets[name] = module
        self.waiting: dict[str, Tensor] = {}

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name of each weight that may change -> the module that it belongs to, and its shape."""
        return {
            f"{name}.{inner}": (name, tuple(tensor.shape))
            for name, target in self.targets.items()
            for inner, tensor in held(saved(target) or base_of(target)).items()
        }

    def make(self, target: str, name: str) -> Tensor:
        """One of a module's weights after the merge, in fp32. Its others wait until they are asked for."""
        if name not in self.waiting:
            self.waiting = self.merged(target)
        return self.waiting.pop(name)

    def merged(self, name: str) -> dict[str, Tensor]:
        """All weights of a module after the merge. It is as it was afterwards."""
        target = self.targets[name]
        if (whole := saved(target)) is not None:
            return {f"{name}.{inner}": tensor.detach() for inner, tensor in held(whole).items()}
        module = base_of(target)
        blank = dict(module.named_parameters())
        try:
            for inner in blank:
                _set(module, inner, nn.Parameter(self.read(f"{name}.{inner}"), requires_grad=False))
            found = {f"{name}.{inner}": one.detach() for inner, one in held(_merge(target)).items()}
        except (NotImplementedError, AttributeError, TypeError) as problem:  # a kind without a merge of its own
            raise ModelError(f"{name} cannot be merged: {first_line(problem)}") from problem
        except (ValueError, RuntimeError) as problem:
            raise ExportError(f"{name} cannot be merged: {first_line(problem)}") from problem
        finally:
            for inner, parameter in blank.items():
                _set(module, inner, parameter)
            for layer in target.modules():
                if hasattr(layer, "merged_adapters"):
                    layer.merged_adapters.clear()
        return found


def _modules(adapted: Any) -> Iterator[tuple[str, Any]]:
    """The modules under the base's names."""
    yield from adapted.get_base_model().named_modules()


def _is_target(module: Any) -> bool:
    library = peft()
    kinds = (library.tuners.tuners_utils.BaseTunerLayer, library.utils.other.AuxiliaryTrainingWrapper)
    return isinstance(module, kinds)


def saved(target: Any) -> Any:
    """The module that stands in for the base's, if the adapter has it whole."""
    held = getattr(target, "modules_to_save", None)
    active = getattr(target, "active_adapters", ())
    return next((held[name] for name in active if name in held), None) if isinstance(held, nn.ModuleDict) else None


def base_of(target: Any) -> nn.Module:
    inner = target.original_module if hasattr(target, "original_module") else target.get_base_layer()
    base: nn.Module = inner.get_base_layer() if hasattr(inner, "get_base_layer") else inner
    return base


def held(module: nn.Module, recurse: bool = True) -> dict[str, Tensor]:
    """Parameters and buffers that are saved, by name; what is tied, under each of its names."""
    found: dict[str, Tensor] = dict(module.named_parameters(recurse=recurse, remove_duplicate=False))
    for name, buffer in module.named_buffers(recurse=recurse, remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        if leaf not in module.get_submodule(owner)._non_persistent_buffers_set:
            found[name] = buffer
    return found


def _merge(target: Any) -> nn.Module:
    """PEFT's own way to unload one module."""
    if hasattr(target, "unload_and_optionally_merge_module"):
        merged: nn.Module = target.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        return merged
    target.merge(safe_merge=True)
    return base_of(target)


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner)._parameters[leaf] = parameter


def first_line(problem: BaseException) -> str:
    """What an error says first; torch has the reason in the second line."""
    lines = [line.strip() for line in str(problem).strip().splitlines() if line.strip()] or [type(problem).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
