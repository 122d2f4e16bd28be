"""`peftkit predict MODEL ROWS --out FILE`: a trained model's answers, beside the columns that were there, in their order."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress

from peftkit.config.speed import Speed
from peftkit.data.columns import to_answer
from peftkit.data.encode import Encoder, encode_rows, length
from peftkit.data.sources import Table, digest, read
from peftkit.engine.world import World, joined
from peftkit.errors import ConfigError, DataError
from peftkit.evaluation.reference import reference_values
from peftkit.evaluation.score import records
from peftkit.flows.out import check_new, written_to
from peftkit.flows.trained import Trained, open_trained, placed, with_columns
from peftkit.kernels.quicken import quicken
from peftkit.tasks.base import Features, Record, Row
from peftkit.tracking.quiet import chatter_to, terminal

CHUNK = 256
"""Rows between two times that the answers are on the disk."""
WRITERS = (".jsonl", ".csv", ".tsv")
PARTIAL = ".partial"


class How(Protocol):
    """What answers to rows that are encoded depend on."""

    @property
    def batch(self) -> int: ...
    @property
    def generate(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Asked:
    """Which rows are answered, and where the answers go."""

    rows: str
    """A file, a folder, a URL or a hub name."""
    out: Path
    """A .jsonl, .csv or .tsv file that does not exist yet."""
    batch: int = 8
    limit: int | None = None
    columns: dict[str, str] = field(default_factory=dict)
    checkpoint: str | None = None
    trust: bool = False
    """Allow Python code that comes with the model."""
    generate: dict[str, int] = field(default_factory=dict)
    """Settings of `generate` other than those that the model was trained with."""


def predict(place: Path, asked: Asked, verbose: bool = False) -> Path:
    """Write every row with the model's answer to `asked.out`; a row that cannot be read gets the reason in `error`.

    Goes on where an interrupted prediction of the same model and rows stopped.
    """
    check_out(asked.out)
    with joined() as world, chatter_to(None, verbose):
        console = Console(file=terminal(), highlight=False)
        if world.processes > 1:
            raise ConfigError("peftkit predict runs on one process; start it without a launcher")
        trained = with_columns(open_trained(place, asked.checkpoint, asked.trust), asked.columns)
        if not trained.task.predicts:
            raise ConfigError(f"--task {trained.task.name} has nothing to predict of a row; peftkit eval scores it")
        trained = replace(trained, model=placed(trained.model, world.device))
        quicken(trained.model, trained.task, Speed(unpad="off"))  # rows of like lengths are together anyway
        table = read(asked.rows, asked.limit, cache=trained.data.cache)
        if "error" in table.rows[0]:
            raise DataError(f"{table.name} has a column 'error', in which rows without an answer are told; rename it")
        answers = Answers(asked.out, identity(place, asked))
        done = answers.written()
        if done:
            console.print(f"going on after row {done:,} of {len(table.rows):,}")
        with Progress(console=console, disable=not terminal().isatty()) as bar:
            shown = bar.add_task("predicting", total=len(table.rows), completed=done)
            for rows in answered(trained, table, done, asked, world):
                with written_to(asked.out, f"; the rows before lie in {answers.partial}, and the same command goes on"):
                    answers.add(rows)
                bar.advance(shown, len(rows))
        failed = answers.failed()
        with written_to(asked.out, f"; all rows lie in {answers.partial}, and the same command goes on"):
            answers.finish()
        count = len(table.rows)
        console.print(f"{count:,} row{'s' * (count != 1)} written to {asked.out}", soft_wrap=True)
        if failed == count:
            raise DataError(
                f"{table.name}: none of its rows could be answered; the column `error` of {asked.out} says why"
            )
        if failed:
            console.print(f"{failed:,} of them without an answer: their column `error` says why", soft_wrap=True)
    return asked.out


def answered(trained: Trained, table: Table, done: int, asked: Asked, world: World) -> Iterator[list[Row]]:
    """The rows from `done` on with their answers, some at a time."""
    task = trained.task
    names = to_answer(table, task, trained.data.columns)
    max_length = min(trained.data.max_length, trained.context or trained.data.max_length)
    encoder = Encoder(task, trained.processor, max_length, trained.data.truncate, trained.data.stride)
    untrained = placed(trained.start(), world.device) if task.reference else None
    for start in range(done, len(table.rows), CHUNK):
        rows = table.rows[start : start + CHUNK]
        asked_of = [task.unlabelled({own: row[name] for own, name in names.items() if name in row}) for row in rows]
        encoded = encode_rows(encoder, asked_of)
        if untrained is not None:
            join_reference(untrained, trained, encoded.windows, asked, world)
        found = judged(trained, asked_of, encoded.windows, asked, world)
        yield [
            beside(row, {"error": str(encoded.problems[at])} if at in encoded.problems else task.answer(found[at]))
            for at, row in enumerate(rows)
        ]


def join_reference(
    untrained: Any, trained: Trained, windows: Sequence[list[Features]], asked: How, world: World
) -> None:
    """What the task needs of the model as it was before its first step, among the features."""
    flat = [window for own in windows for window in own]
    numbered = list(enumerate(flat))
    values = reference_values(untrained, batches(trained, numbered, asked.batch), len(flat), trained.task, world)
    for number, window in numbered:
        window |= {name: float(column[number]) for name, column in values.items()}


def judged(
    trained: Trained, rows: Sequence[Row], windows: Sequence[list[Features]], asked: How, world: World
) -> dict[int, Record]:
    """Each usable row's record."""
    flat = [(row, window) for row, own in enumerate(windows) for window in own]
    generate = trained.generate.model_copy(update=dict(asked.generate))
    made = records(trained.model, batches(trained, flat, asked.batch), trained.task, world, trained.processor, generate)
    grouped = groupby(made, key=lambda pair: flat[pair[0]][0])
    return {
        row: trained.task.judge(rows[row], [record for _, record in own], trained.processor) for row, own in grouped
    }


def batches(
    trained: Trained, windows: Sequence[tuple[int, Features]], size: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Windows of like lengths together."""
    longest_first = sorted(range(len(windows)), key=lambda number: (-length(windows[number][1]), number))
    for start in range(0, len(longest_first), size):
        chosen = longest_first[start : start + size]
        yield chosen, trained.task.collate([windows[number][1] for number in chosen], trained.processor)


def beside(row: Row, answer: Row) -> Row:
    """The row's own columns, then the answer's; DataError if both have one of a name."""
    both = sorted(row.keys() & answer.keys())
    if both:
        raise DataError(f"the rows have a column {both[0]!r}, as the answers have; rename it in the file")
    return {**row, **answer}


def check_out(out: Path) -> None:
    if out.suffix.lower() not in WRITERS:
        raise ConfigError(f"--out {out}: a file that ends in {', '.join(WRITERS)}")
    check_new(out)


def identity(place: Path, asked: Asked) -> str:
    """What an interrupted prediction must have in common with the one that goes on with it."""
    settings = [str(place.resolve()), digest(asked.rows), asked.columns, asked.checkpoint, asked.limit]
    said = json.dumps([*settings, asked.generate], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


class Answers:
    """Rows on their way to `out`: in OUT.partial, a JSON line each, until all are there."""

    def __init__(self, out: Path, identity: str) -> None:
        self.out, self.identity = out, identity
        self.partial = out.with_name(out.name + PARTIAL)

    def written(self) -> int:
        """How many whole rows lie there from an earlier attempt; a line that was cut is dropped."""
        if not self.partial.exists():
            return 0
        lines = self.partial.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        if not whole or json.loads(whole[0]).get("of") != self.identity:
            raise ConfigError(
                f"{self.partial} was written for another model or other rows; remove it, or name another --out"
            )
        self.partial.write_bytes(b"".join(whole))
        return len(whole) - 1

    def failed(self) -> int:
        """How many rows have no answer."""
        with self.partial.open(encoding="utf-8") as lines:
            return sum("error" in json.loads(line) for line in lines)

    def add(self, rows: Sequence[Row]) -> None:
        if not self.partial.exists():
            self.partial.write_text(json.dumps({"of": self.identity}) + "\n", encoding="utf-8")
        with self.partial.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)

    def finish(self) -> None:
        """Put the file in its place, in its format."""
        ready = self.out.with_name(self.out.name + ".ready")
        with self.partial.open(encoding="utf-8") as lines, ready.open("w", encoding="utf-8", newline="") as file:
            next(lines)
            if self.out.suffix.lower() == ".jsonl":
                file.writelines(lines)
            else:
                self._separate(lines, file)
        ready.rename(self.out)
        self.partial.unlink()

    def _separate(self, lines: Iterator[str], file: Any) -> None:
        """As a table: lists and objects as JSON."""
        rows = [json.loads(line) for line in lines]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, columns, delimiter="\t" if self.out.suffix.lower() == ".tsv" else ",")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
