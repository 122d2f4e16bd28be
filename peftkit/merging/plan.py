"""What a merge will do, worked out before a byte is written: every tensor of the merged model, and how it is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import ConfigError, ExportError
from peftkit.merging.tensors import Stored

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Entry:
    """A tensor of the merged model: as it is stored, or made when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stored: Stored | None = None
    """Where the base has it."""
    make: Callable[[], Tensor] | None = None
    """Makes it in `dtype`, where the adapter changes it."""

    @property
    def size(self) -> int:
        count = self.dtype.itemsize
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True)
class Plan:
    entries: list[Entry]
    """In the order of the base's files."""
    config: dict[str, Any]
    """config.json of the merged model."""
    notes: list[str] = field(default_factory=list)
    """What the user is told."""

    @property
    def changed(self) -> int:
        return sum(entry.make is not None for entry in self.entries)

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)


def kept(name: str, stored: Stored, dtype: torch.dtype | None) -> Entry:
    """An entry for what the adapter leaves as it is, in the format asked for if it is a float."""
    return Entry(name, format_of(stored.dtype, dtype), stored.shape, stored)


def format_of(stored: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    return asked if asked is not None and stored.is_floating_point else stored


def rounded(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The one rounding of a merge. ExportError if the result is not finite."""
    least, most = (float(end) for end in torch.aminmax(tensor)) if tensor.numel() else (0.0, 0.0)
    limit = torch.finfo(dtype).max
    if not (-limit <= least and most <= limit):  # also if one of them is no number
        raise ExportError(
            f"{name} is not finite in {str(dtype).removeprefix('torch.')} after the merge ({least:g} to {most:g});"
            " the adapter's weights or the base's are broken, or the format is too small for them"
        )
    return tensor.to(dtype)


def settings(
    config: Mapping[str, Any], dtype: torch.dtype | None = None, rows: int | None = None, untied: bool = False
) -> dict[str, Any]:
    """The base's configuration with what a merge changes in it: the format, the vocabulary's size, whether ends are tied."""
    made = deepcopy(dict(config))
    made.pop("quantization_config", None)
    parts = _parts(made)
    before = next((part["vocab_size"] for part in parts if "vocab_size" in part), None)
    for part in parts:
        if dtype is not None and ("dtype" in part or "torch_dtype" in part or part is made):
            part.pop("torch_dtype", None)
            part["dtype"] = str(dtype).removeprefix("torch.")
        if rows is not None and before is not None and part.get("vocab_size") == before:
            part["vocab_size"] = rows
        if untied and (part.get("tie_word_embeddings") or part is made):
            part["tie_word_embeddings"] = False
    return made


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The configuration, and those of a composed model's parts."""
    return [config, *(part for name, part in config.items() if name.endswith("_config") and isinstance(part, dict))]


def bytes_of(text: str) -> int:
    """`5GB` in bytes. ConfigError for what is no size."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not found or found[2].upper() not in UNITS or not float(found[1]):
        raise ConfigError(f"--max_shard_size {text!r} is no size; write 5GB, 500MB, ...")
    return int(float(found[1]) * UNITS[found[2].upper()])
