"""What encoded rows depend on, as one key: rows, settings, task, tokenizer, code. Where the key is the same, so are they."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peftkit.config.sections import Augment, Data
from peftkit.data.sources import digest
from peftkit.tasks import Task

CODE = ("data", "tasks")
ELSEWHERE = ("doctor", "batches.py", "draws.py")
"""What no encoded row depends on, in the rooms that they do depend on."""
SPLITS = ("train", "validation", "test", "anchor")
LIBRARIES = ("transformers", "tokenizers")

SETTINGS = {"columns", "limit", "truncate", "stride"}
"""Settings of the data that say how each row is encoded; the others are in the key otherwise, or change no encoded row."""


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
    parts = {
        "rows": rows_digest(data, anchor),
        "settings": data.model_dump(mode="json", include=SETTINGS),
        "mixture": [source.model_dump(mode="json", exclude={"path", "weight"}) for source in data.mixture],
        "names": [source.called for source in data.mixture],
        "split": split_settings(data),
        "augment": augment_settings(data.augment),
        "seed": seed if draws(data) else None,
        "by": by,
        "max_length": max_length,
        "task": task.model_dump(mode="json", exclude=set(task.late)),
        "processor": processor_digest(processor),
        "code": code_digest(task),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def draws(data: Data) -> bool:
    """Whether the seed decides anything: which rows are held out, what a changed copy says."""
    return bool(data.augment.copies) or (bool(data.held_out) and data.split != "time")


def split_settings(data: Data) -> dict[str, Any] | None:
    """How rows are held out, where any are."""
    how = {"split": data.split, "by": data.split_by, "folds": data.folds, "fold": data.fold}
    return {**data.held_out, **how} if data.held_out else None


def augment_settings(augment: Augment) -> dict[str, Any] | None:
    """How rows are changed, where any are; the table by what stands in it."""
    if not augment.copies:
        return None
    table = augment.synonyms.read_bytes() if augment.synonyms else b""
    return {**augment.model_dump(mode="json", exclude={"synonyms"}), "table": hashlib.sha256(table).hexdigest()}


def rows_digest(data: Data, anchor: str | None = None) -> dict[str, str]:
    """Of every source that is given, by its split or its name in the mixture; the embedded rows are those of this Python."""
    given = {"train": data.train, "validation": data.validation, "test": data.test, "anchor": anchor}
    given |= {f"mixture/{source.called}": source.path for source in data.mixture}
    there = {name: source for name, source in given.items() if source is not None}
    found = {name: digest(at, name if name in SPLITS else "train", data.cache) for name, at in there.items()}
    return found if data.first is not None else {"train": f"Python {sys.version}", **found}


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
    files = [
        file for room in CODE for file in sorted((package / room).rglob("*.py")) if not {*file.parts} & {*ELSEWHERE}
    ]
    found = hashlib.sha256()
    for file in [*files, Path(inspect.getfile(type(task)))]:
        found.update(file.read_bytes())
    return found.hexdigest()
