"""What lies beside a merged model's weights: configuration, tokenizer or processor, generation settings, where it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peftkit.atomic import synchronise
from peftkit.errors import ModelError

READERS = (
    *("tokenizer*.json", "tokenizer*.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("spiece.model", "sentencepiece*.model", "source.spm", "target.spm", "tekken.json", "normalizer.json"),
    *("chat_template*", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
"""Files of a tokenizer or processor: all of them from one folder, as those of two do not go together."""
BASES = ("generation_config.json", "LICENSE*", "NOTICE*")
PROVENANCE = "merge.json"


def copy_beside(base: Path, adapter: Path, folder: Path, has_code: bool) -> None:
    """Copy what reads rows (the adapter's own, if it came with one) and what the base says of generation and of its licence."""
    reader = (
        adapter
        if any((adapter / name).is_file() for name in ("tokenizer_config.json", "preprocessor_config.json"))
        else base
    )
    for source, patterns in ((reader, READERS), (base, (*BASES, *(("*.py",) if has_code else ())))):
        for file in sorted({file for pattern in patterns for file in source.glob(pattern)}):
            if file.is_file():
                _check_inside(file, source)
                shutil.copyfile(file, folder / file.name)


def _check_inside(file: Path, folder: Path) -> None:
    """ModelError for a link that leads elsewhere (but into the hub's cache, which is made of links): it is not the model's."""
    home = folder.parent.parent if folder.parent.name == "snapshots" else folder
    if not file.resolve().is_relative_to(home.resolve()):
        raise ModelError(f"{file} is a link to {file.resolve()}, outside of its folder; put the file itself there")


def versions() -> dict[str, str]:
    """Of what a merge depends on."""
    found = {}
    for package in ("peftkit", "torch", "safetensors", "transformers", "peft"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write_json(file: Path, held: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    synchronise(file)


def synchronise_all(folder: Path) -> None:
    """Wait until everything in the folder is on the disk."""
    for path in [*folder.iterdir(), folder]:
        synchronise(path)


def check_out(out: Path) -> None:
    """ModelError if there is something where the merged model shall be."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"--out {out} is there already and not empty; name a new folder, or delete it")
