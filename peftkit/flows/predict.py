"""`peftkit predict MODEL ROWS --out FILE`: a trained model's answers, beside the columns that were there, in their order."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from peftkit.config.speed import Speed
from peftkit.data.columns import to_answer
from peftkit.data.sources import Table, digest, read
from peftkit.engine.world import joined
from peftkit.errors import ConfigError, DataError
from peftkit.flows.answering import Answering, answering
from peftkit.flows.out import check_new, written_to
from peftkit.flows.trained import open_trained, placed, with_columns
from peftkit.kernels.quicken import quicken
from peftkit.tasks.base import Row
from peftkit.tracking.quiet import chatter_to, terminal

CHUNK = 256
"""Rows between two times that the answers are on the disk."""
WRITERS = (".jsonl", ".csv", ".tsv")
PARTIAL = ".partial"


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
        trained = replace(trained, model=placed(trained.model, world.device))
        quicken(trained.model, trained.task, Speed(unpad="off"))  # rows of like lengths are together anyway
        asking = answering(trained, world, asked.batch, asked.generate)
        table = read(asked.rows, asked.limit, cache=trained.data.cache)
        if "error" in table.rows[0]:
            raise DataError(f"{table.name} has a column 'error', in which rows without an answer are told; rename it")
        answers = Answers(asked.out, identity(place, asked))
        done = answers.written()
        if done:
            console.print(f"going on after row {done:,} of {len(table.rows):,}")
        with Progress(console=console, disable=not terminal().isatty()) as bar:
            shown = bar.add_task("predicting", total=len(table.rows), completed=done)
            for rows in answered(asking, table, done):
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


def answered(answers: Answering, table: Table, done: int) -> Iterator[list[Row]]:
    """The rows from `done` on with their answers, some at a time."""
    names = to_answer(table, answers.trained.task, answers.trained.data.columns)
    for start in range(done, len(table.rows), CHUNK):
        rows = table.rows[start : start + CHUNK]
        asked_of = [{own: row[name] for own, name in names.items() if name in row} for row in rows]
        yield list(map(beside, rows, answers(asked_of)))


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
