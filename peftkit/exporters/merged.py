"""One ordinary transformers model with the training folded in: safetensors in shards, served by anything that serves models."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftkit.errors import ExportError
from peftkit.exporters.base import Exporter, Reading, widen

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.strategies import Strategy


class Merged(Exporter, name="merged"):
    """A plain model in safetensors, with the training folded into its weights."""

    keeps_model: ClassVar[bool] = False

    max_shard_size: str = "5GB"
    """Largest file of weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The format of the saved weights; auto is the format that the run loaded the base in."""

    def write(
        self, model: nn.Module, strategy: Strategy, folder: Path, reading: Reading, sample: Mapping[str, Any]
    ) -> None:
        """Merge in fp32, round once to the format asked for, save: a layer at a time where that can be."""
        import torch

        dtype = getattr(torch, reading.dtype if self.dtype == "auto" else self.dtype)
        if is_folded_by_peft(strategy) and self._stream(model, folder, dtype):
            return
        if dtype != getattr(torch, reading.dtype):
            widen(model)  # or the merge would round to the base's format on the way
        plain: Any = strategy.merge(model).to(dtype)
        plain.config.dtype = dtype
        mend(plain)
        plain.save_pretrained(folder, max_shard_size=self.max_shard_size)

    def _stream(self, model: Any, folder: Path, dtype: Any) -> bool:
        """Whether it could be done without a merged model in memory."""
        from peftkit.exporters.streamed import Beyond, write_merged

        try:
            config = write_merged(model, folder, dtype, self.max_shard_size)
        except Beyond as why:
            logging.getLogger(__name__).warning("merged in memory, not streamed: %s", why)
            return False
        plain = model.get_base_model()
        settings = mended(plain)
        if settings is not None and plain.can_generate():
            settings.save_pretrained(folder)
        if was_checkpointed(plain):
            config.use_cache = True
        config.save_pretrained(folder)
        return True

    def open(self, folder: Path, reading: Reading) -> PreTrainedModel:
        """Raises ExportError if the files do not hold exactly the weights of the model that the configuration describes."""
        import transformers

        if not any(folder.glob("*.safetensors")):
            raise ExportError(f"{folder} has no weights in safetensors; a pickle (.bin) is not read in their place")
        model, found = getattr(transformers, reading.auto_class).from_pretrained(
            folder, trust_remote_code=reading.trust_remote_code, output_loading_info=True
        )
        wrong = [f"{kind}: {', '.join(sorted(map(str, names)))}" for kind, names in found.items() if names]
        if wrong:
            raise ExportError(f"the weights in {folder} are not those of the model: {'; '.join(wrong)}")
        opened: PreTrainedModel = model
        return opened

    def example(self, folder: str, reading: Reading) -> str:
        reader, called = reading.reader
        return (
            f"from transformers import {reader}, {reading.auto_class}\n\n"
            f"{called} = {reader}.from_pretrained({json.dumps(folder)})\n"
            f"model = {reading.auto_class}.from_pretrained({json.dumps(folder)})"
        )


def is_folded_by_peft(strategy: Strategy) -> bool:
    """Whether PEFT's layers alone say what its merge is. A strategy with a merge of its own is asked for it."""
    from peftkit.strategies import Lora, Qlora

    return type(strategy).merge in (Lora.merge, Qlora.merge)


def whole(model: nn.Module, strategy: Strategy) -> Any:
    """The plain model with the training folded in, in fp32: what another format is rounded to from there, once."""
    widen(model)
    plain: Any = strategy.merge(model).float()
    mend(plain)
    return plain


def mend(model: Any) -> None:
    """Undo what was for training only, and what transformers refuses to save."""
    if was_checkpointed(model):
        model.config.use_cache = True
    if (settings := mended(model)) is not None:
        model.generation_config = settings


def was_checkpointed(model: Any) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def mended(model: Any) -> Any:
    """The generation settings as transformers lets them be saved; None of a model that has none."""
    settings: Any = deepcopy(getattr(model, "generation_config", None))
    try:
        if settings is not None:
            settings.validate(strict=True)
    except ValueError:  # some models come with a temperature for sampling that is switched off
        settings.do_sample = True
    return settings
