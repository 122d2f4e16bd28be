"""Rows are shown as the model sees them, with what is learnt of them marked."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from peftkit.config.run import Run
from peftkit.flows.data_show import marked, show
from tests.tiny import save_image, save_tiny

CHAT = {"messages": [{"role": "user", "content": "Hi [b]"}, {"role": "assistant", "content": "Ho"}]}


@pytest.fixture
def shown(tmp_path):
    """What `show` prints of these rows."""

    def of(task: str, family: str, rows: list[dict], **words: bool) -> str:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        model = save_tiny(tmp_path / family, family)
        data = {"train": str(tmp_path / "a.jsonl"), "holdout": 0, "cache": tmp_path / "cache"}
        run = Run.model_validate({"model": str(model), "task": task, "data": data})
        console = Console(file=io.StringIO(), width=80, **words)
        show(run, 2, console)
        return console.file.getvalue()

    return of


def test_targets_stand_between_marks_where_there_is_no_colour(shown):
    text = shown("chat", "llama", [CHAT] * 3)
    assert text.count("<s><|user|>Hi [b]</s><|assistant|>«Ho</s>»") == 2
    assert text.startswith("learnt: «targets»; the rest is only read\n")
    assert "row 2: 13 tokens, 3 targets" in text
    assert "train: 3 rows, 39 tokens, 9 targets from a.jsonl" in text


def test_targets_are_green_on_a_terminal(shown):
    text = shown("chat", "llama", [CHAT], force_terminal=True, color_system="standard")
    assert "\x1b[1;32mHo</s>\x1b[0m" in text
    assert "«" not in text


def test_a_label_is_shown_behind_its_text(shown):
    text = shown("sequence_classification", "bert", [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}])
    assert "good -> «yes»" in text


def test_images_and_sounds_have_no_tokens(shown, tmp_path):
    images = [{"image": save_image(tmp_path / f"{n}.png", n), "label": "ab"[n]} for n in range(2)]
    text = shown("image_classification", "vit", images)
    assert "row 2: 1 targets" in text
    assert "train: 2 rows, 2 targets from a.jsonl" in text
    assert "tokens" not in text


def test_text_that_looks_like_markup_is_shown_as_it_is():
    console = Console(file=io.StringIO(), width=80)
    console.print(marked([("[red]a[/red]", False), ("[b]", True)], colour=False))
    assert console.file.getvalue() == "[red]a[/red]«[b]»\n"
