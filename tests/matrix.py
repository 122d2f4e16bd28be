"""What goes with what: every task with every strategy, in several worlds, and every family of models with its tasks.

tests/test_promises.py runs each cell and holds its steps against plain torch; what came of it is tests/matrix.json, and
the README's table is that file in words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cases import CASES

OUTCOMES = Path(__file__).with_name("matrix.json")
STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "encoder_only": {"name": "encoder_only"},
    "decoder_only": {"name": "decoder_only"},
    "head_only": {"name": "head_only"},
    "layerwise": {"name": "layerwise", "last": 1},
    "lora": {"name": "lora", "rank": 4},
    "qlora": {"name": "qlora", "rank": 4},
}
EVERYWHERE = ("full", "lora")
TOTAL = 8
EQUAL = "equal"


@dataclass(frozen=True)
class Cell:
    """One run: a case with a model of a family, a strategy, and how its steps are split."""

    case: str
    family: str
    strategy: str
    processes: int
    micro: int
    zero: str

    @property
    def name(self) -> str:
        return "-".join([self.case.replace(" ", "_"), self.family, self.strategy, self.zero, str(self.micro)])

    @property
    def world(self) -> str:
        """`2 processes ZeRO 3`."""
        return f"{self.processes} process{'es' if self.processes > 1 else ''} ZeRO {self.zero[-1]}"

    def settings(self, data: Path) -> dict[str, Any]:
        case = CASES[self.case]
        file = str(data / f"{self.case.replace(' ', '_')}.jsonl")
        return {
            "model": str(data / folder_of(self.case, self.family)),
            "task": {"name": self.case, **case.settings},
            "strategy": STRATEGIES[self.strategy],
            "data": {"train": file, "holdout": 0, "cache": str(data / "cache")},
            "batch": {"total": TOTAL, "micro": self.micro},
            "optim": {"name": "adamw", "lr": 1e-2, "eps": 1e-5, "weight_decay": 0.1, "clip": 0.5},
            "schedule": {"name": "linear", "warmup": 0},
            "deepspeed": self.zero,
            **({} if self.strategy in EVERYWHERE else {"steps": 2}),
        }


def folder_of(case: str, family: str) -> str:
    """The model's folder: cases that want another head or other labels have models of their own."""
    return "-".join([family, *(str(value) for value in CASES[case].model.values())])


def cells() -> list[Cell]:
    """Every run of the matrix."""
    found = []
    for case, what in CASES.items():
        first, *others = what.families
        # A variant of a task (its name has a second word) has another loss, and the same weights to train.
        for strategy in EVERYWHERE if is_variant(case) else STRATEGIES:
            found += [Cell(case, first, strategy, 1, 2, "zero2"), Cell(case, first, strategy, 2, 2, "zero3")]
            if strategy in EVERYWHERE:
                found.append(Cell(case, first, strategy, 2, 2, "zero2"))
        found += [Cell(case, family, "lora", 1, 2, "zero2") for family in others]
    # The splits that most can go wrong in, for the tasks that most people use.
    for case in ("chat", "sequence_classification"):
        family = CASES[case].families[0]
        for strategy in EVERYWHERE:
            found += [Cell(case, family, strategy, 1, 8, "zero0"), Cell(case, family, strategy, 2, 1, "zero0")]
            found += [Cell(case, family, strategy, 2, 2, f"zero{stage}") for stage in (0, 1)]
            found += [Cell(case, family, strategy, 2, 1, "zero3")]
    return found


def is_variant(case: str) -> bool:
    return " " in case


def render(outcomes: dict[str, str]) -> str:
    """The README's tables: what was found in the cells, nothing else."""
    heading = ["task", "models", *STRATEGIES]
    lines = [f"| {' | '.join(heading)} |", "|" + " --- |" * len(heading)]
    for case, what in sorted(CASES.items(), key=lambda pair: pair[0]):
        families = [family for family in what.families if any(ok(outcomes, case, family))]
        tried = EVERYWHERE if is_variant(case) else STRATEGIES
        columns = [told(outcomes, case, what.families[0], one) if one in tried else "" for one in STRATEGIES]
        lines.append(f"| {case} | {', '.join(families)} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def ok(outcomes: dict[str, str], case: str, family: str) -> list[bool]:
    return [outcomes[key] == EQUAL for key in outcomes if key.startswith(f"{case}, {family}, ")]


def told(outcomes: dict[str, str], case: str, family: str, strategy: str) -> str:
    """A tick where every world's steps were plain torch's, a dash where it is refused, else the worlds that serve."""
    prefix = f"{case}, {family}, {strategy}, "
    found = {key.removeprefix(prefix): outcome for key, outcome in outcomes.items() if key.startswith(prefix)}
    good = sorted(world for world, outcome in found.items() if outcome == EQUAL)
    if len(good) == len(found):
        return "✓"
    return "; ".join(good) if good else "–"


def read_outcomes() -> dict[str, str]:
    found: dict[str, str] = json.loads(OUTCOMES.read_text(encoding="utf-8"))
    return found
