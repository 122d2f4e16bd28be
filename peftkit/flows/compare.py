"""`peftkit compare RUN`: the same held-out prompts, answered by the base and by the tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from peftkit.config.read import load as load_run
from peftkit.data.store import Store
from peftkit.errors import ConfigError
from peftkit.flows.job import prepare_data
from peftkit.models.load import load
from peftkit.models.processor import load_processor
from peftkit.run_folder import RunFolder
from peftkit.strategies.full import Full
from peftkit.tasks.base import IGNORED
from peftkit.tasks.next_token import NextToken
from peftkit.tracking.console import Console
from peftkit.tracking.quiet import chatter_to

LONGEST = 48
"""Tokens of an answer that are shown."""


def compare(run_folder: Path, rows: int = 3, console: Console | None = None) -> list[tuple[str, str, str, str]]:
    """Show, for the first held-out rows: prompt, expected answer, the base's, the tuned model's (greedy); returns them.

    Raises ConfigError if the run has no merged export, or its task writes no text.
    """
    folder = RunFolder(run_folder)
    run = load_run(folder.config)
    merged = folder.export("merged")
    if not isinstance(run.task, NextToken):
        raise ConfigError(f"--task {run.task.name} writes no text to compare")
    if not merged.is_dir():
        raise ConfigError(f"{merged} is not there yet: peftkit export {run_folder} --to merged")
    with chatter_to(folder.logs / "compare.log"):
        source, prepared = prepare_data(run)
        tokenizer = load_processor(run.model, source)
        store = prepared.validation or prepared.test or prepared.train
        cut = [at_first_target(store, row) for row in range(min(rows, len(store)))]
        base = load(run.model, run.task, Full(), torch.float32, run.seed, run.data.cache).model
        before = [answer(base, tokenizer, prompt) for prompt, _ in cut]
        tuned = run.task.model_class().from_pretrained(merged, dtype=torch.float32)
        after = [answer(tuned, tokenizer, prompt) for prompt, _ in cut]
        told = [
            (tokenizer.decode(prompt, skip_special_tokens=True), said(tokenizer, expected), old, new)
            for (prompt, expected), old, new in zip(cut, before, after, strict=True)
        ]
        (console or Console()).show(*tables(told))
    return told


def at_first_target(store: Store, row: int) -> tuple[list[int], list[int]]:
    """A row's tokens before its first target, and from there on."""
    features = store[row]
    start = next(at for at, label in enumerate(features["labels"]) if at and label != IGNORED)
    return features["input_ids"][:start], features["input_ids"][start:]


def answer(model: PreTrainedModel, tokenizer: Any, prompt: list[int]) -> str:
    """The model's greedy continuation."""
    ids = torch.tensor([prompt])
    model.eval()
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=LONGEST,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
        )
    return said(tokenizer, out[0, len(prompt) :].tolist())


def said(tokenizer: Any, tokens: list[int]) -> str:
    text: str = tokenizer.decode(tokens[:LONGEST], skip_special_tokens=True)
    return text.strip()


def tables(told: list[tuple[str, str, str, str]]) -> list[Table]:
    """A table a row."""
    made = []
    for number, (prompt, expected, before, after) in enumerate(told, start=1):
        table = Table(box=None, show_header=False, padding=(0, 2, 1, 0), title=f"prompt {number}", title_justify="left")
        for name, text, style in (
            ("prompt", prompt.strip(), "dim"),
            ("expected", expected, ""),
            ("before", before, ""),
            ("after", after, "bold"),
        ):
            table.add_row(name, Text(text, style=style))
        made.append(table)
    return made
