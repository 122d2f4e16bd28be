"""`peftkit compare RUN`: the same held-out prompts, answered by the base and by the tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from peftkit.config.sections import Generate
from peftkit.data.prepare import Prepared
from peftkit.errors import ConfigError
from peftkit.evaluation.generate import write_texts
from peftkit.flows.export import read_run
from peftkit.flows.job import prepare_data
from peftkit.models.load import load
from peftkit.models.processor import load_processor
from peftkit.run_folder import RunFolder
from peftkit.strategies.full import Full
from peftkit.tasks import Task
from peftkit.tasks.base import Batch, Record, Row
from peftkit.tracking.console import Console
from peftkit.tracking.quiet import chatter_to

LONGEST = 48
"""Tokens of an answer that are shown."""


def compare(
    run_folder: Path, rows: int = 3, console: Console | None = None, trust: bool = False
) -> list[tuple[str, str, str, str]]:
    """Show, for the first held-out rows: prompt, expected answer, the base's, the tuned model's (greedy); returns them.

    Raises ConfigError if the run has no merged export, or its task writes no text.
    """
    folder = RunFolder(run_folder)
    folder.check_links()
    run = read_run(folder.config, trust)
    merged = folder.export("merged")
    if not merged.is_dir():
        raise ConfigError(f"{merged} is not there yet: peftkit export {run_folder} --to merged")
    with chatter_to(folder.logs / "compare.log"):
        source, prepared = prepare_data(run)
        processor = load_processor(run.model, source, run.task.reads)
        chosen = first_rows(prepared, rows, processor)
        if prepared.task.prompts(chosen[0][1], processor) is None:
            raise ConfigError(f"--task {run.task.name} writes no text to compare")
        base = load(run.model, run.task, Full(), torch.float32, run.seed, run.data.cache).model
        before = [answer(base, prepared.task, row, batch, processor) for row, batch in chosen]
        tuned = run.task.model_class().from_pretrained(
            merged, dtype=torch.float32, trust_remote_code=run.model.trust_remote_code
        )
        after = [answer(tuned, prepared.task, row, batch, processor) for row, batch in chosen]
        told = [
            (prompt_of(prepared.task, batch, processor), str(old["reference"]), old["generated"], new["generated"])
            for (_, batch), old, new in zip(chosen, before, after, strict=True)
        ]
        (console or Console()).show(*tables(told))
    return told


def first_rows(prepared: Prepared, rows: int, processor: Any) -> list[tuple[Row, Batch]]:
    """The first held-out rows, each with its first window as a batch of its own."""
    stores = {name: store for name in ("validation", "test", "train") if (store := prepared.store(name)) is not None}
    split, store = next(iter(stores.items()))
    firsts = {int(store.row[window]): window for window in reversed(range(len(store)))}
    windows = sorted(firsts.items())[:rows]
    return [(prepared.rows(split)[row], prepared.task.collate([store[at]], processor)) for row, at in windows]


def answer(model: PreTrainedModel, task: Task, row: Row, batch: Batch, processor: Any) -> Record:
    """What the model writes for the row (greedy), and what it should."""
    model.eval()
    with torch.no_grad():
        (ids,) = write_texts(model, task, batch, processor, Generate(max_new_tokens=LONGEST)) or [[]]
    (expected,) = task.expected(batch) or [[]]
    return task.judge(row, [{"generated_ids": ids, "reference_ids": expected[:LONGEST]}], processor)


def prompt_of(task: Task, batch: Batch, processor: Any) -> str:
    """What the model was given, in words."""
    ids = (task.prompts(batch, processor) or {}).get("input_ids")
    text: str = "" if ids is None else processor.decode(ids[0], skip_special_tokens=True)
    return text


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
