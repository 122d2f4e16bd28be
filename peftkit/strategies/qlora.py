"""LoRA on a base held in 4 bits (QLoRA, Dettmers et al., 2023, https://arxiv.org/abs/2305.14314), by bitsandbytes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast

from peftkit.errors import ConfigError
from peftkit.models.inspect import inner
from peftkit.strategies.library import peft
from peftkit.strategies.lora import Lora, trains_whole, whole_modules

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class Qlora(Lora, name="qlora"):
    """LoRA on a base whose linear layers are held in 4 bits: about a quarter of the memory of 16-bit weights."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit numbers: NF4 has its sixteen values where normally distributed weights are, FP4 is a small float."""
    double_quant: bool = True
    """Quantise the scales as well: 0.4 bits less a weight."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The format that 4-bit weights are multiplied in; auto is the run's precision."""
    storage_dtype: Literal["uint8", "float32", "bfloat16", "float16"] = "uint8"
    """The format that packs the 4-bit numbers. It changes no value; a float one must be that of the run's precision."""

    def conflicts(self, run: Any) -> Iterator[str]:
        """bitsandbytes is missing, or the engine's cast to its precision would change packed weights."""
        yield from super().conflicts(run)
        if find_spec("bitsandbytes") is None:
            yield missing_bitsandbytes()
        packed = SHORT.get(self.storage_dtype)
        if packed and run.precision not in ("auto", packed):
            yield (
                f"--strategy.storage_dtype {self.storage_dtype} and --precision {run.precision} clash: casting the model"
                " to its precision would change the packed weights; leave storage_dtype at uint8"
            )

    def loading(self, dtype: torch.dtype) -> dict[str, Any]:
        """A `quantization_config`: transformers quantises while it reads the 16-bit or 32-bit weights."""
        if find_spec("bitsandbytes") is None:
            raise ConfigError(missing_bitsandbytes())
        import torch
        from transformers import BitsAndBytesConfig

        compute = dtype if self.compute_dtype == "auto" else getattr(torch, self.compute_dtype)
        return {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=self.quant_type,
                bnb_4bit_use_double_quant=self.double_quant,
                bnb_4bit_compute_dtype=compute,
                bnb_4bit_quant_storage=getattr(torch, self.storage_dtype),
            )
        }

    def adapt(self, model: PreTrainedModel, fresh: Sequence[str] = ()) -> nn.Module:
        """As LoRA, on 4-bit layers.

        Nothing is cast to fp32 as PEFT's `prepare_model_for_kbit_training` would: norms and embeddings stay in the format
        that they were loaded in (norms compute in fp32 inside), as in a LoRA run of the same precision.
        """
        guard(model)
        saved, direct = whole_modules(model, fresh, self.modules_to_save)
        layers = {name.rpartition(".")[0] for name in direct}
        layers |= {name for name in four_bit_layers(model) if trains_whole(name, model, saved)}
        replace_4bit(model, only=layers)  # packed numbers cannot train
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            # Frozen embeddings give activations without a gradient, which reentrant checkpointing would cut off.
            model.enable_input_require_grads()
        return super().adapt(model, fresh)

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """Fold the adapter into the dequantised weights that it was trained on; the result is an ordinary model.

        Into the original 16-bit weights would be another model: the adapter has learnt to make up for the rounding to
        4 bits. Rounding the merged weights to 4 bits again would lose most of it.
        """
        from transformers.pytorch_utils import Conv1D

        trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
        adapted: Any = model
        config = copy(adapted.peft_config["default"])
        base = adapted.base_model.unload()
        replace_4bit(base)
        forget_quantization(base)
        config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in base.modules())
        plain = peft().get_peft_model(base, config)
        parameters = dict(plain.named_parameters())
        for name, value in trained.items():
            parameters[name].data = value
        return super().merge(plain)


def missing_bitsandbytes() -> str:
    return "--strategy qlora needs bitsandbytes, which is not installed: pip install 'peftkit[qlora]'"


def four_bit_layers(model: nn.Module) -> dict[str, Any]:
    from bitsandbytes.nn import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def unquantised_layers(model: nn.Module) -> list[str]:
    """Linear layers of an adapted model that are not in 4 bits, by the base's names: what `llm_int8_skip_modules` takes."""
    from torch import nn

    found = set()
    for name, module in inner(model)[1].named_modules():
        own = not any(part in name for part in (".lora_", ".modules_to_save."))
        if own and isinstance(module, nn.Linear) and getattr(module.weight, "quant_state", None) is None:
            found.add(
                name.removesuffix(".base_layer").removesuffix(".original_module").replace(".original_module.", ".")
            )
    return sorted(found)


def guard(model: nn.Module) -> None:
    """Keep the 4-bit weights as they are.

    On processors with avx512_bf16, bitsandbytes repacks them in place at the first forward in eval mode; from then on
    they dequantise to garbage and cannot be saved. `from_pretrained` returns models in eval mode.
    """
    for layer in four_bit_layers(model).values():
        layer.support_avx512bf16_for_cpu = False
    model.train()


def replace_4bit(model: nn.Module, only: Collection[str] | None = None) -> None:
    """Put a plain layer with the dequantised weights in the place of every 4-bit one (of those in `only`)."""
    for name, layer in four_bit_layers(model).items():
        if only is None or name in only:
            model.set_submodule(name, dequantised(layer, float_dtype(model)))


def dequantised(layer: Any, dtype: torch.dtype) -> nn.Module:
    """A plain layer of the kind that it was before: GPT-2's Conv1D has its weight transposed."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    weight = layer.weight.data  # a newly made layer is no 4-bit one yet: transformers leaves it unquantised
    if state := getattr(layer.weight, "quant_state", None):
        weight = unpacked(weight, state)
    weight = weight.to(dtype)
    transposed = issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D)
    if transposed:
        plain: Any = Conv1D(0, 0)
        plain.nf, plain.nx = layer.out_features, layer.in_features
    else:
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.T.contiguous() if transposed else weight, requires_grad=False)
    plain.bias = layer.bias
    plain.train(layer.training)
    return cast("nn.Module", plain)


def unpacked(weight: torch.Tensor, state: Any) -> torch.Tensor:
    """The numbers of a packed weight, in fp32."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    # Products read the 4-bit numbers in their own format, whatever format they were quantised from.
    state = copy(state)
    state.dtype = torch.float32
    return cast("torch.Tensor", dequantize_4bit(weight, state))


def quantised_and_back(weight: torch.Tensor, quant_type: str, double_quant: bool) -> torch.Tensor:
    """A linear layer's weight after its way to 4 bits and back, in its own format: what `dequantised` gives of a loaded one."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(missing_bitsandbytes())
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, quant_type=quant_type, compress_statistics=double_quant)
    return unpacked(packed, state).to(weight.dtype)


def float_dtype(model: nn.Module) -> torch.dtype:
    """The format of the weights that are not in 4 bits."""
    whole: Any = model
    dtype: torch.dtype = whole.get_input_embeddings().weight.dtype
    return dtype


def forget_quantization(model: PreTrainedModel) -> None:
    """Leave no trace of bitsandbytes, so that the model saves and loads as any other."""
    for module in model.modules():
        for name in ("quantization_method", "is_quantized", "is_loaded_in_4bit"):
            module.__dict__.pop(name, None)
        getattr(module, "config", model.config).__dict__.pop("_is_quantized", None)
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
