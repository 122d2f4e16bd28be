"""`peftkit compare`: its numbers are those of `eval`, its rows those of `predict`, its tests scipy's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from peftkit.cli.main import main
from peftkit.config.read import write
from peftkit.errors import ConfigError, DataError
from peftkit.flows import evaluate, predict, sides
from peftkit.flows.compare import Asked, compare
from peftkit.flows.export import open_run, put_trained
from peftkit.run_folder import RunFolder
from tests.flows.test_export import run_of, save_checkpoint
from tests.tiny import save_tiny, tokenizer
from tests.trained import shake


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained(folder: Path, size: float, family: str = "bert", **settings: Any) -> Path:
    """A run as a training would have left it, moved from its base by so much."""
    folder.mkdir()
    run = run_of(folder, family, **settings)
    fitted, base, _ = open_run(run, {})
    model = shake(fitted.strategy.adapt(base.model, base.fresh), size)
    place = RunFolder(folder / "run")
    place.path.mkdir()
    place.config.write_text(write(fitted))
    weights = {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}
    put_trained(model, weights)
    save_checkpoint(place.checkpoint(7), weights, base.fingerprint)
    return place.path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classifiers of the same base, a chat model, and rows for them."""
    made = tmp_path_factory.mktemp("compare")
    for name, size in (("one", 0.3), ("two", 0.9)):
        trained(made / name, size, strategy="lora")
    rows = [
        {"text": f"row {n} " + "word " * (n % 4), "label": "abc"[n % 3], "lang": ["de", "en"][n % 2]} for n in range(23)
    ]
    lines(made / "rows.jsonl", rows)
    lines(made / "some.jsonl", [*rows[:5], {"text": "", "label": "a"}, {"text": "x", "label": "z"}])
    talk = [{"prompt": f"say {n}", "response": "word " * (1 + n % 3)} for n in range(8)]
    data = {"train": lines(made / "chat.jsonl", talk), "holdout": 0.5}
    trained(made / "chat", 0.05, "llama", task="chat", strategy="full", data=data, generate={"max_new_tokens": 6})
    return made


def test_numbers_are_those_of_eval_and_the_test_is_of_what_predict_says(folder: Path, tmp_path: Path) -> None:
    rows, models = str(folder / "rows.jsonl"), [str(folder / name / "run") for name in ("one", "two")]
    found = compare(Asked(models, rows, by="lang", samples=200))
    answers = []
    for at, model in enumerate(models):
        numbers = evaluate.evaluate(Path(model), evaluate.Asked(rows, by="lang"))
        for one in found.differences:
            assert (one.before, one.after)[at] == pytest.approx(numbers[one.name], rel=1e-6)
        for group in found.groups:
            told = {name: pair[at] for name, *pair in group.numbers}
            assert told["accuracy"] == pytest.approx(numbers[f"lang={group.value}/accuracy"])
        out = predict.predict(Path(model), predict.Asked(rows, tmp_path / f"{at}.jsonl"))
        answers.append([json.loads(line) for line in out.read_text().splitlines()])
    right = [[row["prediction"] == row["label"] for row in side] for side in answers]
    fixed = sum(not one and other for one, other in zip(*right, strict=True))
    broken = sum(one and not other for one, other in zip(*right, strict=True))
    accuracy = next(one for one in found.differences if one.name == "accuracy")
    assert fixed + broken > 0
    assert (accuracy.test, accuracy.rows) == ("McNemar", (fixed, broken))
    assert accuracy.p == pytest.approx(stats.binomtest(fixed, fixed + broken).pvalue)
    assert (found.counts.get("fixed", 0), found.counts.get("broken", 0)) == (fixed, broken)
    assert [change.after for change in found.changes] == [row["prediction"] for row in answers[1]]
    assert [(group.value, group.rows) for group in found.groups] == [("de", 12), ("en", 11)]


def test_rows_that_cannot_be_read_are_told_and_the_others_compared(folder: Path) -> None:
    models = [str(folder / name / "run") for name in ("one", "two")]
    found = compare(Asked(models, str(folder / "some.jsonl"), samples=20))
    assert len(found.changes) == 5
    for side in found.sides:
        (empty, strange) = side.unread
        assert empty == ("some.jsonl line 6", "no 'text'")
        assert strange[0] == "some.jsonl line 7" and "label" in strange[1]
    assert "so few rows (5)" in found.notes[0]
    none = lines(folder / "none.jsonl", [{"text": "", "label": "a"}])
    with pytest.raises(DataError, match=r"no row could be read for both models: no 'text'"):
        compare(Asked(models, none))


def test_a_run_is_compared_with_its_base_on_its_own_held_out_rows(folder: Path) -> None:
    run = folder / "chat" / "run"
    found = compare(Asked([str(run)], rows=2, generate={"max_new_tokens": 6}))
    assert [side.label for side in found.sides] == ["base", "tuned"]
    assert [change.asked[:4] for change in found.changes] == ["say "] * 2
    assert all(change.truth.startswith("word") for change in found.changes)
    assert (run / "logs" / "compare.log").is_file()
    loss = next(one for one in found.differences if one.name == "loss")
    told = {one.name for one in found.differences}
    assert loss.before != loss.after and {"perplexity", "chrf", "text_exact_match"} <= told
    same = compare(Asked([str(folder / "chat" / "base"), str(run)], str(folder / "chat.jsonl"), limit=8, samples=20))
    ours = {change.place: change for change in same.changes}
    for change in found.changes:
        assert (change.before, change.after) == (ours[change.place].before, ours[change.place].after)


def test_one_model_is_in_memory_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    alive: list[weakref.ref[Any]] = []
    real = sides.answered

    def watched(opened: Any, *rest: Any) -> Any:
        gc.collect()
        assert not [ref for ref in alive if ref() is not None]
        alive.append(weakref.ref(opened.model))
        return real(opened, *rest)

    monkeypatch.setattr("peftkit.flows.compare.answered", watched)
    one, two, rows = (str(folder / name) for name in ("one/run", "two/run", "some.jsonl"))
    compare(Asked([one, two], rows, samples=1))
    compare(Asked([one], rows, samples=1))
    assert len(alive) == 4


def test_a_base_beside_a_run_takes_its_task(folder: Path) -> None:
    base, run = folder / "one" / "base", folder / "one" / "run"
    found = compare(Asked([str(base), str(run)], str(folder / "rows.jsonl"), samples=20))
    assert any("A was not trained for these labels" in note for note in found.notes)
    other = compare(Asked([str(run), str(base)], str(folder / "rows.jsonl"), samples=20))
    assert [(one.before, one.after) for one in found.differences] == [
        (one.after, one.before) for one in other.differences
    ]


def test_other_tokens_make_losses_incomparable(folder: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "llama")
    words = tokenizer()
    words.chat_template = words.chat_template.replace("eos_token }}", "eos_token }} then ")
    words.save_pretrained(other)
    rows = lines(tmp_path / "rows.jsonl", [{"prompt": "say", "response": "one two"}] * 3)
    found = compare(Asked([str(other), str(folder / "chat" / "run")], rows, samples=20))
    assert {change.losses for change in found.changes} == {None}
    assert "into other tokens" in " ".join(found.notes)
    assert {one.name for one in found.differences} == {"chrf", "text_exact_match"}


def test_labels_in_another_order_are_the_same_labels() -> None:
    one, other = (
        sides.Answered(
            sides.Task.model_validate({"name": "sequence_classification", "problem": "single_label", "labels": labels}),
            {0: {"label": "a", "prediction": "a", "probabilities": [0.7, 0.3]}},
            {},
        )
        for labels in (["a", "b"], ["c", "a"])
    )
    task, (first, second) = sides.in_one_order((one, other), [0])
    assert task.labels == ["a", "b", "c"]  # type: ignore[attr-defined]
    assert (first[0]["probabilities"], second[0]["probabilities"]) == ([0.7, 0.3, 0.0], [0.3, 0.0, 0.7])
    tags = sides.Answered(sides.Task.model_validate("token_classification"), {}, {})
    with pytest.raises(ConfigError, match="one learnt --task sequence_classification, the other --task token_class"):
        sides.in_one_order((one, tags), [])


def test_labels_are_integers_that_torch_takes_for_a_loss() -> None:
    """Rows that are encoded many at once have int32, and a model that is another program has no loss of its own."""
    window = {"labels": np.array([1, 2], np.int32), "input_ids": [1, 2], "weight": np.float32(1)}
    found = sides.wide(window)
    assert found["labels"].dtype == np.int64 and found["labels"].tolist() == [1, 2]
    assert (found["input_ids"], found["weight"]) == ([1, 2], 1.0)


def test_the_commands(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, two, rows = (str(folder / name) for name in ("one/run", "two/run", "rows.jsonl"))
    both = ["compare", one, two, "--data", rows, "--samples", "50"]
    html, plain = tmp_path / "page.html", tmp_path / "all.json"
    assert main([*both, "--html", str(html), "--json", str(plain), "--by", "lang", "--rows", "1"]) == 0
    said = capfd.readouterr().out
    assert "McNemar's exact test" in said and f"written to {html}" in said
    assert "<!doctype html>" in html.read_text() and len(json.loads(plain.read_text())["changes"]) == 23
    for words, code, told in (
        (["compare", one, two], 2, "name them with --data"),
        (["compare", one, two, one, "--data", rows], 2, "one model or two, and these are 3"),
        (["compare", str(folder / "one/base"), "--data", rows], 2, "neither a run's folder"),
        (["compare", str(folder / "one/base")], 2, "is no run's folder, which has held-out rows"),
        (["compare", rows, rows, "--data", rows], 2, "says what is learnt"),
        ([*both, "--html", str(html)], 2, "exists already"),
        ([*both, "--by", "langage"], 2, "no column 'langage'"),
        ([*both, "--metrics", "acuracy"], 2, "did you mean"),
        ([*both, "--fail-if-worse", "acuracy"], 2, "--fail-if-worse acuracy is no metric"),
        ([*both, "--samples", "0"], 2, "at least 1"),
    ):
        assert main(words) == code, words
        assert told in capfd.readouterr().err, words


def test_a_gate_for_a_ci(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A run against one with the labels of its own answers is right in all rows, and the other is not."""
    run = folder / "one" / "run"
    told = predict.predict(run, predict.Asked(str(folder / "rows.jsonl"), tmp_path / "told.jsonl"))
    answers = [json.loads(line) for line in told.read_text().splitlines()]
    rows = lines(tmp_path / "rows.jsonl", [{"text": row["text"], "label": row["prediction"]} for row in answers])
    words = ["--data", rows, "--samples", "50", "--metrics", "accuracy", "--fail-if-worse", "accuracy"]
    assert main(["compare", str(folder / "two/run"), str(run), *words]) == 0
    capfd.readouterr()
    assert main(["compare", str(run), str(folder / "two/run"), *words]) == 1
    said = capfd.readouterr().err
    assert "is significantly worse by accuracy: 1.000 with A" in said and "Traceback" not in said
