"""Python code that comes with a model: it is run only where the user says so, and otherwise the refusal says how."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TRUST = "--model.trust_remote_code"
"""The flag that allows it, for every command that opens a model."""


def why_unread(problem: Exception, source: str) -> str:
    """Why a model, tokenizer or processor cannot be read; of one that needs its own code, which code, and how to allow it."""
    if "trust_remote_code" in str(problem):
        named = ", ".join(sorted(set(code_of(Path(source))))[:3])
        return (
            f"it brings Python code of its own{f' ({named})' if named else ''}, and none of it was run;"
            f" if you have read that code and trust it, allow it with {TRUST}"
        )
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


def code_of(folder: Path) -> Iterator[str]:
    """The classes that a model's folder wants to be run, as its files write them: `modeling_own.OwnForCausalLM`."""
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        yield from _words(held.get("auto_map")) if isinstance(held, dict) else ()


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _words(inner)


def kernels_of(config: Any) -> list[str]:
    """Attention kernels that a configuration would fetch from the hub and run (ORG/NAME)."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    found = (getattr(part, "_attn_implementation", None) for part in parts)
    return sorted({one for one in found if isinstance(one, str) and "/" in one})
