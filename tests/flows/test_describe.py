"""What a run says of itself before and after: what the task took from the rows, and what can be typed next."""

from __future__ import annotations

from pathlib import Path

from peftkit.flows.describe import next_commands, task_words
from peftkit.tasks import Task


def test_the_header_says_what_the_rows_made_of_the_task() -> None:
    tags = {"name": "token_classification", "scheme": "IOB2", "labels": ["O", "B-LOC"]}
    topics = {"name": "sequence_classification", "problem": "multi_label", "labels": [f"L{at}" for at in range(10)]}
    assert task_words(Task.model_validate(tags)) == "token_classification  (IOB2: O, B-LOC)"
    assert task_words(Task.model_validate(topics)).endswith("(multi_label: L0, L1, L2, L3, L4, L5, L6, L7 and 2 more)")
    assert task_words(Task.model_validate("chat")) == "chat"


def test_the_next_commands_score_answer_and_export() -> None:
    run = Path("runs/a")
    assert next_commands(Task.model_validate("chat"), run) == [
        "peftkit eval runs/a ROWS",
        "peftkit predict runs/a ROWS --out answers.jsonl",
        "peftkit export runs/a --to merged",
    ]
    assert not [words for words in next_commands(Task.model_validate("masked_lm"), run) if "predict" in words]
