"""Preparing rows against the tokenizer alone: CPU time of `prepare` over one `encode_batch_fast` of the same texts.

python tests/bench/tokenise.py [ROWS [TURNS]]       50,000 rows are promised to take at most 1.2 times as long

Chat rows (prompt and response, as in the race W1), plain texts, and texts with a label; everything from reading the file to the
sealed folder is counted, and so are all threads. Beside it stands what opening the prepared rows again takes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from peftkit.config.sections import Data
from peftkit.data.prepare import prepare
from peftkit.tasks import Task
from tests.bench.measure import spread
from tests.bench.workloads import chat_rows, make_tokenizer, without_counts

SAMPLES = 4000
"""So many rows are drawn; larger numbers repeat them, each with its number in front."""


def main(count: int, turns: int) -> None:
    tokenizer = make_tokenizer(32000)
    drawn = [without_counts(row) for row in chat_rows(tokenizer, min(count, SAMPLES), 1024)]
    rows = [{**drawn[at % len(drawn)], "prompt": f"{at} {drawn[at % len(drawn)]['prompt']}"} for at in range(count)]
    texts = [f"{row['prompt']}{row['response']}" for row in rows]
    kinds: dict[str, list[dict[str, Any]]] = {
        "chat": rows,
        "causal_lm": [{"text": text} for text in texts],
        "sequence_classification": [{"text": text, "label": "ab"[at % 2]} for at, text in enumerate(texts)],
    }
    for task, own in kinds.items():
        asked = [_rendered(tokenizer, row) for row in rows] if task == "chat" else texts
        race(tokenizer, task, own, asked, turns)


def race(tokenizer: Any, task: str, rows: list[dict[str, Any]], texts: list[str], turns: int) -> None:
    ratios, again = [], []
    with tempfile.TemporaryDirectory(prefix="tokenise-") as name:
        file = Path(name) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for turn in range(turns):
            data = Data(train=str(file), cache=Path(name) / f"cache-{turn}", max_length=1024, holdout=0)
            whole = cpu(lambda data=data: prepare(data, Task.model_validate(task), tokenizer, None, 1))
            alone = cpu(lambda: tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=task != "chat"))
            ratios.append(whole / alone)
            again.append(cpu(lambda data=data: prepare(data, Task.model_validate(task), tokenizer, None, 1)))
    print(
        f"{task:24} {len(rows):,} rows: {spread(ratios)} times the tokenizer's {alone:.1f} CPU s; again: {spread(again)} s"
    )


def _rendered(tokenizer: Any, row: dict[str, Any]) -> str:
    roles = {"user": row["prompt"], "assistant": row["response"]}
    messages = [{"role": role, "content": content} for role, content in roles.items()]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def cpu(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    main(*(numbers + [50_000, 3][len(numbers) :]))
