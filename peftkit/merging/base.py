"""The base model that an adapter is merged into: its configuration, and where each of its tensors lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit.errors import ModelError
from peftkit.merging.tensors import Stored, stored_in

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Base:
    """A folder that `from_pretrained` reads."""

    folder: Path
    config: dict[str, Any]
    """config.json."""
    tensors: dict[str, Stored]
    """By the names in the files, in the files' order."""

    @property
    def files(self) -> list[Path]:
        return list(dict.fromkeys(tensor.file for tensor in self.tensors.values()))

    @property
    def size(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())


def find_base(path: str, revision: str | None = None) -> Path:
    """The folder of the model that `path` names: a folder, a .gguf file (converted in the cache), or a hub name."""
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        return folder
    # These import transformers, which a folder does not need.
    from peftkit.config.sections import Model
    from peftkit.models.find import download, find, hub_words

    settings = Model(path=path, revision=revision)
    try:
        source = find(settings)
        if Path(source).is_dir():
            return Path(source)
        hub_words(settings, source)
        return download(source, revision)
    except ModelError as problem:
        raise ModelError(str(problem).replace("--model ", "--base ")) from problem
    except (OSError, ValueError) as problem:
        raise ModelError(f"--base {path} cannot be had from the hub: {problem}") from problem


def read_base(folder: Path) -> Base:
    """Reads the headers of its files only. ModelError if it is no model in safetensors, or incomplete."""
    tensors: dict[str, Stored] = {}
    for file in weight_files(folder):
        tensors |= stored_in(file)
    return Base(folder, read_json(folder / "config.json", "--base"), tensors)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads: what the index names, else model.safetensors."""
    if not (folder / INDEX).is_file():
        if not (folder / WHOLE).is_file():
            pickled = any(folder.glob("pytorch_model*.bin"))
            told = "; a pickle (.bin) is not read in their place: save it as safetensors first" if pickled else ""
            raise ModelError(f"--base {folder} has no weights in safetensors ({WHOLE} or {INDEX}){told}")
        return [folder / WHOLE]
    named = read_json(folder / INDEX, "--base").get("weight_map")
    if not isinstance(named, dict) or not all(_is_name(name) for name in named.values()):
        raise ModelError(f"--base {folder / INDEX} is no index of weights")
    files = [folder / name for name in dict.fromkeys(named.values())]
    for file in files:
        if not file.is_file():
            raise ModelError(f"--base {folder}: {file.name} is missing, though the index of weights names it")
    return sorted(files)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name


def read_json(file: Path, flag: str) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ModelError(f"{flag} {file} cannot be read: {problem}") from problem
    if not isinstance(held, dict):
        raise ModelError(f"{flag} {file} holds no settings")
    return held
