"""What transformers 5 saves, also under the names by which servers built on transformers 4 know it.

A reader that does not find a name takes its default and says nothing: another base of the rotary embedding, 16-bit weights, a chat
without its template. text-generation-inference reads the template from tokenizer_config.json alone (its issue 3247).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""transformers 5's name of a class -> the one that both know."""


def tell_older_readers(folder: Path) -> None:
    """Add the older names to config.json and tokenizer_config.json; what is there stays as it is."""
    _change(folder / "config.json", older_config)
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else None
    _change(folder / "tokenizer_config.json", lambda held: older_tokenizer(held, text))


def older_config(held: dict[str, Any]) -> dict[str, Any]:
    """`dtype` is also `torch_dtype`; `rope_parameters` are also `rope_theta` and `rope_scaling`."""
    added: dict[str, Any] = {}
    if isinstance(held.get("dtype"), str):
        added["torch_dtype"] = held["dtype"]
    rope = held.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        added["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            added["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {**added, **held}


def older_tokenizer(held: dict[str, Any], template: str | None) -> dict[str, Any]:
    """The template of chat_template.jinja stands in it, too, and its class has the name that both know."""
    added = {"chat_template": template} if template is not None else {}
    kind = held.get("tokenizer_class")
    return {**added, **held, **({"tokenizer_class": CLASSES[kind]} if kind in CLASSES else {})}


def _change(file: Path, change: Any) -> None:
    if not file.is_file():
        return
    held = json.loads(file.read_text(encoding="utf-8"))
    changed = change(held)
    if changed != held:
        file.write_text(json.dumps(changed, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
