"""The adapter alone, in PEFT's format: small, and loaded onto its base by `PeftModel.from_pretrained(base, folder)`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.errors import ExportError
from peftkit.exporters.base import Exporter, Reading, widen
from peftkit.strategies.library import asking_no_other, peft

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from peftkit.strategies import Strategy


class Adapter(Exporter, name="adapter"):
    """adapter_model.safetensors in fp32 and adapter_config.json, for PEFT and everything that reads its format."""

    needs_adapter: ClassVar[bool] = True

    def write(
        self, model: nn.Module, strategy: Strategy, folder: Path, reading: Reading, sample: Mapping[str, Any]
    ) -> None:
        """Raises ExportError if a tensor is empty (ZeRO-3 shards that were not gathered)."""
        from safetensors.torch import save_file

        tensors = adapter_tensors(model)
        empty = [name for name, tensor in tensors.items() if not tensor.numel()]
        if empty:
            raise ExportError(
                f"the adapter has {len(empty)} empty tensors, such as {empty[0]}: gather the weights first"
            )
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        save_config(model, folder, reading)

    def open(self, folder: Path, reading: Reading) -> PreTrainedModel:
        """The base as it was trained on (in 4 bits, if it was), with the adapter on it."""
        check_config(folder)
        base = open_base(reading)
        widen(base)  # on a 16-bit base PEFT rounds what trained whole (a head) to 16 bits
        with asking_no_other(base):
            opened: PreTrainedModel = peft().PeftModel.from_pretrained(base, folder)
        return opened

    def open_beside(self, opened: Any, folder: Path, name: str) -> bool:
        """Load this adapter onto the base of `opened`, beside the ones that are there; `opened.set_adapter(name)` chooses it.

        False if it brings weights of the base itself with it, which are then in the base: `opened` is of no use any more.
        """
        check_config(folder)
        before = [(tensor, tensor._version) for tensor in _weights(opened)]
        with asking_no_other(opened):
            opened.load_adapter(folder, adapter_name=name)
        return all(tensor._version == version for tensor, version in before)

    def example(self, folder: str, reading: Reading) -> str:
        words = [json.dumps(reading.base)]
        if reading.labels:
            words += [f"num_labels={len(reading.labels)}"]
            words += [] if reading.padding is None else [f"pad_token_id={reading.padding}"]
        bits = four_bits(reading)
        grow = (
            [f"base.resize_token_embeddings({reading.vocabulary})  # for the added tokens"]
            if reading.vocabulary
            else []
        )
        reader, called = reading.reader
        lines = [
            "from peft import PeftModel",
            f"from transformers import {reader}, {reading.auto_class}{', BitsAndBytesConfig' if bits else ''}",
            "",
            f"{called} = {reader}.from_pretrained({json.dumps(folder)})",
            *bits,
            f"base = {reading.auto_class}.from_pretrained({', '.join([*words, *(['quantization_config=bits'] if bits else [])])})",
            *grow,
            f"model = PeftModel.from_pretrained(base, {json.dumps(folder)})",
        ]
        return "\n".join(lines)


def _weights(model: nn.Module) -> list[Tensor]:
    """What is there already, which another adapter must not change."""
    return [*model.parameters(), *model.buffers()]


def four_bits(reading: Reading) -> list[str]:
    """The lines that make the quantisation's configuration: the adapter belongs to the 4-bit base."""
    settings = reading.strategy
    if "quant_type" not in settings:
        return []
    return [
        "bits = BitsAndBytesConfig(",
        "    load_in_4bit=True,",
        f"    bnb_4bit_quant_type={settings['quant_type']!r},",
        f"    bnb_4bit_use_double_quant={settings['double_quant']},",
        f'    bnb_4bit_compute_dtype="{reading.dtype}",',
        f"    llm_int8_skip_modules={list(reading.unquantised)!r},",
        ")",
    ]


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything that trains, in fp32, under the names that PEFT loads.

    PEFT's own selection lacks parameters that train where they are (embeddings of added tokens). It loads them all the
    same if they lie in the file under the model's names.
    """
    tensors: dict[str, Tensor] = peft().get_peft_model_state_dict(model, save_embedding_layers=False)
    covered = {tensor.data_ptr() for tensor in tensors.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in covered:
            tensors[name] = parameter
    return {name: tensor.detach().float().clone().contiguous() for name, tensor in tensors.items()}


def save_config(model: Any, folder: Path, reading: Reading) -> None:
    config = copy(model.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = reading.base
    config.revision = reading.revision
    config.target_modules = sorted(config.target_modules)  # a set has another order in every process
    config.modules_to_save = sorted(set(config.modules_to_save)) if config.modules_to_save else None
    base = type(model.get_base_model())
    mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
    config.save_pretrained(folder, auto_mapping_dict=None if config.task_type else mapping)


WRITTEN = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out", "bias", "use_rslora", "use_dora"),
    *("modules_to_save", "rank_pattern", "alpha_pattern", "task_type", "inference_mode", "base_model_name_or_path"),
    *("revision", "auto_mapping", "peft_version"),
}
"""What an adapter of ours says in its configuration. PEFT opens it without following what `auto_mapping` and the base name."""


def check_config(folder: Path) -> None:
    """ExportError for an adapter that asks of PEFT what no adapter of ours does: to import a module, to read other files."""
    held: Mapping[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    usual = {**json.loads(json.dumps(peft().LoraConfig().to_dict(), default=str)), "peft_type": "LORA"}
    strange = [
        name
        for name, value in held.items()
        if name not in WRITTEN and value != usual.get(name) and value not in (None, False, "", [], {})
    ]
    if strange or held.get("peft_type") != "LORA":
        raise ExportError(
            f"{folder / 'adapter_config.json'} asks for what no adapter of peftkit has ({', '.join(strange) or 'peft_type'})"
        )
    if not (folder / "adapter_model.safetensors").is_file():
        raise ExportError(
            f"{folder} has no adapter_model.safetensors; a pickle (adapter_model.bin) is not read in its place"
        )


def open_base(reading: Reading) -> Any:
    """The base as the run loaded it."""
    import torch
    import transformers

    from peftkit.strategies import Strategy

    dtype = getattr(torch, reading.dtype)
    options: dict[str, Any] = Strategy.model_validate(reading.strategy).loading(dtype)
    if "quantization_config" in options:
        options["quantization_config"].llm_int8_skip_modules = list(reading.unquantised)
    if reading.labels:
        options |= {"num_labels": len(reading.labels), "id2label": reading.labels}
        # A configuration that knows no padding (ViT's) hands the word on to the model, which refuses it.
        options |= {} if reading.padding is None else {"pad_token_id": reading.padding}
        options["ignore_mismatched_sizes"] = True  # the base may have a head of its own; the adapter's takes its place
    if not Path(reading.base).is_dir():
        options["use_safetensors"] = True  # a pickle from elsewhere is read by nobody
    base = getattr(transformers, reading.auto_class).from_pretrained(
        reading.base,
        revision=reading.revision or "main",
        trust_remote_code=reading.trust_remote_code,
        dtype=dtype,
        **options,
    )
    if reading.vocabulary:
        base.resize_token_embeddings(reading.vocabulary, mean_resizing=False)
    return base
