"""The merge of what cannot be streamed: transformers loads the base whole, in fp32, and PEFT merges into it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from peftkit.errors import ModelError
from peftkit.merging.adapter import Adapter
from peftkit.merging.base import Base
from peftkit.merging.by_peft import Combine, first_line, load, mix, stand
from peftkit.merging.hollow import hollow
from peftkit.strategies.lora import own_weights, record_untying


def write(
    base: Base, adapters: Sequence[Adapter], dtype: torch.dtype | None, folder: Path, limit: int,
    combine: Combine | None = None, labels: Mapping[int, str] | None = None, trust: bool = False,
) -> None:  # fmt: skip
    """Write the merged model with `save_pretrained`. Raises ModelError if adapter and base do not fit."""
    given = {name.replace(".base_layer.", ".") for adapter in adapters for name in adapter.tensors}
    model = loaded(hollow(base, adapters[0], labels, trust), base, given)
    stored = next(one.dtype for one in base.tensors.values() if one.dtype.is_floating_point)
    known = dict(model.named_parameters(remove_duplicate=False))
    adapted = stand(model, adapters, afresh=False)
    for name, own in load(adapted, adapters, list(known)).items():
        known[name].data = own.read().float()
    if combine is not None:
        mix(adapted, adapters, combine, ())
    own_weights(adapted)
    plain: Any = adapted.merge_and_unload(progressbar=False, safe_merge=True)
    record_untying(plain)
    plain.to(dtype or stored).save_pretrained(folder, max_shard_size=limit)


def loaded(blank: Any, base: Base, given: Collection[str]) -> Any:
    """The base's weights in a model like `blank`. ModelError if it lacks some that the adapters do not have either (`given`)."""
    try:
        model, found = type(blank).from_pretrained(
            base.folder, config=blank.config, dtype=torch.float32, use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as problem:
        raise ModelError(f"--base {base.folder} cannot be loaded: {first_line(problem)}") from problem
    misfits = {entry[0] if isinstance(entry, (tuple, list)) else entry for entry in found["mismatched_keys"]}
    lacking = sorted((set(found["missing_keys"]) | misfits) - set(given))
    if lacking:
        raise ModelError(
            f"{len(lacking)} weights of {type(blank).__name__} are neither in --base nor in --adapter, such as {lacking[0]}"
        )
    return model
