"""The formats of the field are read without conversion: nested values stay, and the columns name their task."""

from __future__ import annotations

import json

import pytest

from peftkit.data.columns import rename
from peftkit.data.sources import read
from peftkit.errors import DataError
from peftkit.tasks import Task

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
FIELD = {
    "Alpaca": ({"instruction": "q", "input": "", "output": "a"}, "chat"),
    "ShareGPT": ({"id": "1", "conversations": SHAREGPT}, "chat"),
    "OpenAI messages": ({"messages": TURNS}, "chat"),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, "chat"),
    "prompt and completion as messages": ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "chat"),
    "DPO": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference"),
    "DPO as messages": ({"chosen": TURNS, "rejected": TURNS, "score_chosen": 1.5}, "preference"),
    "KTO": ({"prompt": "q", "completion": "a", "label": True}, "preference"),
    "labels": ({"text": "t", "label": 1}, "sequence_classification"),
    "pairs": ({"premise": "t", "hypothesis": "u", "label": 1, "idx": 3}, "sequence_classification"),
    "translation": ({"translation": {"de": "x", "en": "y"}}, "seq2seq"),
    "summary": ({"article": "x", "highlights": "y", "id": "1"}, "seq2seq"),
}


@pytest.mark.parametrize("name", FIELD)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_format_is_read_as_it_is_and_its_task_is_suggested(tmp_path, name, suffix):
    row, task = FIELD[name]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row] if suffix == "json" else row))
    table = read(str(path))
    assert table.rows == [row]
    other = next(name for name in ("causal_lm", "reward", "chat") if name != task and not fits(table, name))
    with pytest.raises(DataError, match=f"these columns look like --task {task}( |$)"):
        rename(table, Task.registry[other].model_construct(), {})


def fits(table, name):
    try:
        return bool(rename(table, Task.registry[name].model_construct(), {}))
    except DataError:
        return False
