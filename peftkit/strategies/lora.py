"""Low-rank adaptation (Hu et al., 2021, https://arxiv.org/abs/2106.09685), with its rsLoRA and DoRA variants, by PEFT."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from peftkit.errors import ExportError, ModelError
from peftkit.models.inspect import convolutions, embedding_ends, linear_layers
from peftkit.registry import did_you_mean
from peftkit.strategies.library import asking_no_other, peft
from peftkit.strategies.trunk import CachesTrunk

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
# PEFT's model classes add these to modules_to_save on their own, so no adapter may stand on them.
SAVED_BY_PEFT = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


class Lora(CachesTrunk, name="lora"):
    """Two thin matrices beside each chosen layer train; the base stays as it is. The usual choice."""

    makes_adapter: ClassVar[bool] = True

    rank: PositiveInt = 16
    """Rank of each adapter's two matrices."""
    alpha: PositiveFloat | None = None
    """The adapter's output is scaled by alpha / rank; left out: twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on each adapter's input."""
    target_modules: list[str] | str = ALL_LINEAR
    """Which layers get an adapter: all-linear (all but the head's; of a network without any, its convolutions), a list of
    names ([q_proj, v_proj]), or a regular expression that matches a layer's whole name."""
    layers: list[NonNegativeInt] | None = None
    """Only in the layers of these numbers, counted from 0."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps large ranks stable (Kalajdzievski, 2023)."""
    dora: bool = False
    """Learn each weight's magnitude and direction apart (Liu et al., 2024): often better at small ranks, slower."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases train as well: none, all, or those of the layers that have an adapter."""
    modules_to_save: list[str] = []
    """Modules that train whole and are saved with the adapter. A newly made head always does."""
    rank_pattern: dict[str, PositiveInt] = {}
    """Other ranks by layer name or regular expression: {down_proj: 32}."""
    alpha_pattern: dict[str, PositiveFloat] = {}
    """Other alphas by layer name or regular expression."""

    @field_validator("target_modules")
    @classmethod
    def _readable(cls, value: list[str] | str) -> list[str] | str:
        if not value:
            raise ValueError("names no layer; leave it out for all-linear")
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as problem:
                raise ValueError(f"{value!r} is no regular expression: {problem}") from None
        return value

    @property
    def moves_trunk(self) -> str:
        everywhere = self.layers is None and self.target_modules == ALL_LINEAR
        return "every layer has an adapter; name the upper ones with --strategy.layers" if everywhere else ""

    def adapt(self, model: PreTrainedModel, fresh: Sequence[str] = ()) -> nn.Module:
        """The model in a `peft.PeftModel`; its adapters' parameters are fp32 (PEFT's own choice, for stable training)."""
        saved, direct = whole_modules(model, fresh, self.modules_to_save)
        targets = self.targets(model, saved)
        parameters = [model.get_parameter(name) for name in direct]
        with asking_no_other(model):
            adapted: nn.Module = peft().get_peft_model(model, self.peft_config(model, targets, saved))
        for parameter in parameters:
            parameter.requires_grad_(True)
        return adapted

    def targets(self, model: PreTrainedModel, saved: Sequence[str]) -> list[str]:
        """Full names of the layers that get an adapter."""
        names = adaptable_layers(model, saved)
        if self.target_modules == ALL_LINEAR:
            wide = linear_layers(model) or convolutions(model)
            found = [name for name in names if name in wide]
        else:
            found = matching(self.target_modules, names)
        if not found:
            raise ModelError(f"--strategy.target_modules {self.target_modules!r}: nothing to adapt; {there_is(names)}")
        return found if self.layers is None else in_layers(self.layers, found)

    def peft_config(self, model: PreTrainedModel, targets: list[str], saved: list[str]) -> Any:
        from transformers.pytorch_utils import Conv1D

        return peft().LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha or 2 * self.rank,
            lora_dropout=self.dropout,
            target_modules=targets,
            # PEFT finds out by itself, with a warning for every layer.
            fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets),
            bias=self.bias,
            use_rslora=self.rslora,
            use_dora=self.dora,
            modules_to_save=saved or None,
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
            task_type=task_type(model),
        )

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """Fold the adapters into the base weights, in fp32, cast back to the base's format; changes `model` in place."""
        own_weights(model)
        for layer in adapter_layers(model):
            merge_in_fp32(layer)
        adapted: Any = model
        plain: PreTrainedModel = adapted.base_model.unload()
        record_untying(plain)
        return plain


def whole_modules(model: PreTrainedModel, fresh: Sequence[str], wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """What trains whole: modules for PEFT's modules_to_save, and parameters that train where they are.

    An embedding is never copied, as modules_to_save would: its weight may be tied to others (and PEFT's tied copy
    drops the output layer's bias). It trains in place, stays tied, and needs no merge.
    """
    parameters = {
        name: [f"{name}.{inner}" for inner, _ in module.named_parameters(remove_duplicate=False)]
        for name, module in model.named_modules()
        if name
    }
    asked = {name for want in wanted for name in named(want, parameters)}
    embeddings = embedding_names(model)
    saved: list[str] = []
    direct: list[str] = [name for name in fresh if is_under(name, embeddings)]
    for name, inside in parameters.items():
        whole = name in asked or (inside and set(fresh).issuperset(inside))
        if name in embeddings:
            direct += inside if name in asked else []
        elif whole and not is_under(name, saved) and not any(is_under(end, [name]) for end in embeddings):
            saved.append(name)
    direct += [name for name in fresh if not is_under(name, saved)]
    return saved, list(dict.fromkeys(direct))


def named(want: str, modules: Iterable[str]) -> list[str]:
    """The modules that `want` names, by their whole name or its end."""
    found = [name for name in modules if name == want or name.endswith(f".{want}")]
    if not found:
        there_are = {name.rsplit(".", 1)[-1] for name in modules}
        raise ModelError(
            f"--strategy.modules_to_save {want!r} is no module of the model{did_you_mean(want, there_are)}"
        )
    return found


def embedding_names(model: PreTrainedModel) -> list[str]:
    """Names of the modules that hold the input embedding or the output layer's weight (in BART: five)."""
    weights = {id(end.weight) for end in embedding_ends(model) if hasattr(end, "weight")}
    return [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if any(id(parameter) in weights for parameter in module._parameters.values())
    ]


def is_under(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def adaptable_layers(model: PreTrainedModel, saved: Sequence[str]) -> list[str]:
    """Names of the layers that can hold an adapter, without those that train whole."""
    import torch
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, Conv1D, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    return [name for name in layers if not trains_whole(name, model, saved)]


def trains_whole(name: str, model: PreTrainedModel, saved: Sequence[str]) -> bool:
    """Whether PEFT will copy the layer whole. It compares the ends of names: `classifier` takes in `pre_classifier`."""
    ends = (*saved, *SAVED_BY_PEFT.get(task_type(model) or "", ()))
    return any(name.endswith(end) for end in ends) or is_under(name, ends)


def matching(target_modules: list[str] | str, names: Sequence[str]) -> list[str]:
    """The names that a regular expression matches whole, or that end in one of the words; a word without a match is an error."""
    if isinstance(target_modules, str):
        return [name for name in names if re.fullmatch(target_modules, name)]
    chosen = {word: [name for name in names if name == word or name.endswith(f".{word}")] for word in target_modules}
    for word, matches in chosen.items():
        if not matches:
            known = {name.rsplit(".", 1)[-1] for name in names}
            raise ModelError(
                f"--strategy.target_modules {word!r} is no layer{did_you_mean(word, known)}; {there_is(names)}"
            )
    wanted = {name for matches in chosen.values() for name in matches}
    return [name for name in names if name in wanted]


def there_is(names: Sequence[str]) -> str:
    """`there are q_proj (24), v_proj (24)`: the layers' last names and how often each comes."""
    counts = Counter(name.rsplit(".", 1)[-1] for name in names)
    return (
        "there are " + ", ".join(f"{name} ({count})" for name, count in counts.most_common())
        if counts
        else "there are none"
    )


def in_layers(wanted: Sequence[int], names: Sequence[str]) -> list[str]:
    """Those of the names that lie in a layer of a wanted number; a number without a layer is an error."""
    numbers = {name: int(number[1]) for name in names if (number := re.search(r"\.(\d+)\.", name))}
    missing = sorted(set(wanted) - set(numbers.values()))
    if missing:
        there_are = sorted(set(numbers.values()))
        extent = f"{there_are[0]} to {there_are[-1]}" if there_are else "not numbered"
        raise ModelError(f"--strategy.layers {missing}: nothing to adapt there; the layers of the model are {extent}")
    return [name for name in names if numbers.get(name) in wanted]


def task_type(model: PreTrainedModel) -> str | None:
    """PEFT's name for what the model's class does, from transformers' own tables; None lets PEFT note the class itself."""
    from transformers.models.auto import modeling_auto as auto

    tables = {
        "SEQ_CLS": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "TOKEN_CLS": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "QUESTION_ANS": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        "SEQ_2_SEQ_LM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "CAUSAL_LM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    kind = type(model).__name__
    return next((name for name, table in tables.items() if kind in table.values()), None)


def adapter_layers(model: nn.Module) -> list[Any]:
    """The layers that hold an adapter."""
    kind = peft().tuners.tuners_utils.BaseTunerLayer
    return [module for module in model.modules() if isinstance(module, kind)]


def own_weights(model: nn.Module) -> None:
    """Give every adapted layer a weight of its own: folding into a tied weight would change the other layer as well."""
    from torch import nn

    holders = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    for layer in adapter_layers(model):
        base = layer.get_base_layer()
        weight = getattr(base, "weight", None)
        if weight is not None and holders[id(weight)] > 1:
            base.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)


def merge_in_fp32(layer: Any) -> None:
    """Fold one layer's adapter into its base weight; rounding happens once, at the end."""
    base = layer.get_base_layer()
    dtype = base.weight.dtype
    layer.float()
    try:
        layer.merge(safe_merge=True)
    except ValueError as problem:  # PEFT's word for weights that are not finite
        raise ExportError(f"the adapter cannot be merged: {problem}") from problem
    base.to(dtype)


def record_untying(model: PreTrainedModel) -> None:
    """Tell the configuration if input and output embedding were tied and now differ, lest loading ties them again."""
    ends = embedding_ends(model)
    if len(ends) < 2 or getattr(ends[0], "weight", None) is getattr(ends[1], "weight", None):
        return
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
