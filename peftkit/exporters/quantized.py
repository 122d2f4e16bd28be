"""The merged model with its linear layers in 4 or 8 bits, in the form that transformers opens by itself."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from peftkit.errors import ConfigError
from peftkit.exporters.base import Exporter, Reading, coarse
from peftkit.exporters.merged import Merged, whole
from peftkit.models.inspect import linear_layers

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.strategies import Strategy
    from peftkit.tasks import Task

PACKAGES = {"nf4": ("bitsandbytes", "qlora"), "fp4": ("bitsandbytes", "qlora"), "int8": ("torchao", "torchao")}
"""What each method needs, and the extra of peftkit's that installs it."""
NOT_SERVED = {
    "llm_int8": "bitsandbytes decides by the whole batch which inputs are outliers, so that a row's answer hangs on its"
    " neighbours (by 9 % of the logits on SmolLM2-135M); take int8",
    "int4": "torchao's 4-bit weights are computed on some GPUs alone; take nf4",
}
ALLOWED = {"nf4": 0.6, "fp4": 0.75, "int8": 0.1}


class Quantized(Exporter, name="quantized"):
    """A plain model whose linear layers are in 4 bits (bitsandbytes) or 8 bits (torchao): a third to a half of 16-bit weights."""

    keeps_model: ClassVar[bool] = False

    method: Literal["nf4", "fp4", "int8"] = "nf4"
    """4 bits: nf4 has its sixteen values where normally distributed weights are, fp4 is a small float (bitsandbytes). int8 is
    8 bits a weight and a scale a row; products are computed in the other weights' format (torchao)."""
    double_quant: bool = True
    """Quantise the scales of 4-bit weights as well: 0.4 bits less a weight."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The format of what is not quantised, and of products; auto is the format that the run loaded the base in."""
    max_shard_size: str = "5GB"
    """Largest file of weights."""

    @field_validator("method", mode="before")
    @classmethod
    def _served(cls, value: Any) -> Any:
        """Names the methods that others have, and why they are not here."""
        if value in NOT_SERVED:
            raise ValueError(f"{value} is not made: {NOT_SERVED[value]}")
        return value

    def stored(self, reading: Reading) -> str:
        return coarse(self.method, reading)

    @property
    def tolerance(self) -> float:
        """Half as much again as was measured, and twice of int8.

        Logits of SmolLM2-135M-Instruct differ by 32 to 42 % of their size in nf4, 42 to 51 % in fp4 and 4 to 5 % in int8, those
        of tiny models by 17, 22 and 1 %; larger models lose less.
        """
        return ALLOWED[self.method]

    def ready(self) -> None:
        """ConfigError if the method's package is not installed."""
        package, extra = PACKAGES[self.method]
        if find_spec(package) is None:
            raise ConfigError(
                f"--to.method {self.method} needs {package}, which is not installed: pip install 'peftkit[{extra}]'"
            )

    def refuses(self, task: Task, config: Any, strategy: Strategy) -> str:
        """A model without linear layers, or whose own the method does not take."""
        import torch

        try:
            with torch.device("meta"):
                model = task.model_class().from_config(config)
        except ValueError:  # code of its own, which is not run for a question
            return ""
        if not linear_layers(model):
            return f"a {config.model_type} has no linear layers besides its head's, and nothing else is quantised"
        why = unfit_for_torchao(model) if self.method == "int8" else ""
        return f"torchao does not take a {config.model_type}, {why}; take --to.method nf4" if why else ""

    def write(
        self, model: nn.Module, strategy: Strategy, folder: Path, reading: Reading, sample: Mapping[str, Any]
    ) -> None:
        """Merge in fp32, let transformers quantise each weight as it reads it, save. The head, and what a QLoRA run had in full,
        stays so. The 4-bit weights of a QLoRA run are rounded a second time here, with the training in them."""
        import torch
        import transformers

        dtype = getattr(torch, reading.dtype if self.dtype == "auto" else self.dtype)
        plain = whole(model, strategy)
        skipped = kept(plain, reading)
        with TemporaryDirectory(prefix=".merged-", dir=folder) as scratch:
            plain.save_pretrained(scratch, max_shard_size=self.max_shard_size)
            plain.to("meta")  # its memory is needed now
            quantised = getattr(transformers, reading.auto_class).from_pretrained(
                scratch,
                trust_remote_code=reading.trust_remote_code,
                dtype=dtype,
                quantization_config=self.config(skipped, dtype),
            )
        quantised.save_pretrained(folder, max_shard_size=self.max_shard_size)

    def config(self, kept: list[str], dtype: torch.dtype) -> Any:
        """transformers' quantisation configuration, which lies in config.json; layers in `kept` are left as they are."""
        import transformers

        if self.method == "int8":
            from torchao.quantization import Int8WeightOnlyConfig

            return transformers.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.method,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=kept,
        )

    def open(self, folder: Path, reading: Reading) -> PreTrainedModel:
        """Raises ExportError if the files are not safetensors, or lack weights of the model."""
        from peftkit.strategies.qlora import guard

        self.ready()
        opened: PreTrainedModel = Merged().open(folder, reading)
        if self.method != "int8":
            guard(opened)
        return opened.eval()

    def example(self, folder: str, reading: Reading) -> str:
        return Merged().example(folder, reading)


def unfit_for_torchao(model: nn.Module) -> str:
    """What of the model transformers cannot quantise by torchao, or not read again; empty if nothing."""
    from torch import nn

    if any(not isinstance(layer, nn.Linear) for layer in linear_layers(model).values()):
        return "whose linear layers are of its own kind"
    if own := [name for name in model.state_dict() if "." not in name]:
        return f"which has a tensor outside its layers ({own[0]})"
    try:
        model.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        return "which has no embeddings of tokens"
    return ""


def kept(model: nn.Module, reading: Reading) -> list[str]:
    """Linear layers that stay as they are: the head's, and those that a QLoRA run did not have in 4 bits."""
    heads = linear_layers(model, head=True).keys() - linear_layers(model).keys()
    return sorted({*heads, *reading.unquantised})
