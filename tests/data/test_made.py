"""Rows for measuring: the same ones for the same seed, of lengths that vary as those of real conversations do."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median

from peftkit.data.made import conversations, write_conversations


def test_a_seed_gives_the_same_rows() -> None:
    assert conversations(5, 1) == conversations(5, 1) != conversations(5, 2)
    assert conversations(9, 1)[:5] == conversations(5, 1)


def test_lengths_are_lognormal(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in write_conversations(tmp_path / "a.jsonl", 400, 3).read_text().splitlines()]
    answers = [len(row["response"]) for row in rows]
    assert 200 < median(answers) < 340 < mean(answers), "a long tail"
    assert max(answers) <= 3600 and min(len(row["prompt"]) for row in rows) >= 1
