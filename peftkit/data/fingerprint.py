"""What encoded rows depend on, as one key: rows, settings, task, tokenizer, code. Where the key is the same, so are they."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peftkit.config.sections import Data
from peftkit.data.sources import digest
from peftkit.tasks import Task

CODE = ("data", "tasks")
LIBRARIES = ("transformers", "tokenizers")


IRRELEVANT = {"train", "validation", "test", "max_length", "cache", "workers", "balance", "temperature"}
"""Settings of the data that are in the key otherwise, or change no encoded row."""


def key(
    data: Data,
    task: Task,
    processor: Any,
    max_length: int,
    seed: int,
    by: str | None = None,
    anchor: str | None = None,
) -> str:
    """32 letters that differ wherever the encoded rows might."""
    draws = data.validation is None or data.test_holdout or data.augment.copies
    parts = {
        "rows": rows_digest(data, anchor),
        "settings": data.model_dump(mode="json", exclude=IRRELEVANT),
        "seed": seed if draws else None,
        "by": by,
        "max_length": max_length,
        "task": task.model_dump(mode="json"),
        "processor": processor_digest(processor),
        "code": code_digest(task),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def rows_digest(data: Data, anchor: str | None = None) -> dict[str, str]:
    """Of every split that is given; the embedded rows are those of this Python's own library."""
    given = {"train": data.train, "validation": data.validation, "test": data.test, "anchor": anchor}
    digests = {split: digest(source, split) for split, source in given.items() if source is not None}
    return digests if data.train is not None else {"train": f"Python {sys.version}", **digests}


def processor_digest(processor: Any) -> str:
    """Vocabulary, rules, named tokens and chat template of a tokenizer; of a processor its settings too."""
    found = hashlib.sha256(type(processor).__name__.encode())
    for part in (processor, getattr(processor, "tokenizer", None)):
        for text in _described(part):
            found.update(text.encode())
    return found.hexdigest()


def _described(part: Any) -> list[str]:
    texts = [part.to_json_string()] if hasattr(part, "to_json_string") else []
    if hasattr(part, "special_tokens_map"):
        texts += [json.dumps(part.special_tokens_map, sort_keys=True, default=str), str(part.chat_template)]
    if getattr(part, "is_fast", False):
        part.backend_tokenizer.no_truncation()  # what the last call asked for is no property of the tokenizer
        part.backend_tokenizer.no_padding()
        texts.append(part.backend_tokenizer.to_str())
    elif hasattr(part, "get_vocab"):
        texts.append(json.dumps(part.get_vocab(), sort_keys=True))
    return texts


def code_digest(task: Task) -> str:
    """Of the code that reads and encodes rows: a mended bug must not live on in old caches."""
    package = Path(__file__).parents[1]
    files = [file for room in CODE for file in sorted((package / room).rglob("*.py"))]
    found = hashlib.sha256()
    for file in [*files, Path(inspect.getfile(type(task)))]:
        found.update(file.read_bytes())
    return found.hexdigest()
