"""What a row's labels, several labels or numbers become, and how they are decided."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from peftkit.config.run import Run
from peftkit.config.sections import Model
from peftkit.data.encode import Encoder
from peftkit.models.configure import configure
from peftkit.tasks import SequenceClassification, Task
from peftkit.tasks.base import LabelError, RowError
from peftkit.tasks.labels import problem_of
from tests.tiny import save_tiny, tiny, tokenizer

GENRES = [{"text": "one", "label": "war|love"}, {"text": "two", "label": "love"}, {"text": "three", "label": ""}]
SCORES = [{"text": "one", "label": 0.5}, {"text": "two", "label": "2"}, {"text": "three", "label": 3}]


def fitted(rows, **settings) -> SequenceClassification:
    return SequenceClassification(**settings).fit(rows)


def outputs(*rows) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.tensor(rows))


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["a", "b", None], "single_label"),
        ([1, 2, 3], "single_label"),
        ([1.0, 0.0, float("nan")], "single_label"),
        (["1", "2.5", "b"], "single_label"),
        ([0.5, 1.0], "regression"),
        (["0.5", "1"], "regression"),
        ([[0.5, 1.0]], "regression"),
        ([["a"], []], "multi_label"),
        (["a|b", "c"], "multi_label"),
        ([{"a": 1, "b": 0}], "multi_label"),
        (["Cause-Effect(e1,e2)", "Other"], "single_label"),
    ],
)
def test_the_rows_say_what_is_learnt(labels, problem):
    assert problem_of(labels) == problem


@pytest.mark.parametrize(
    ("labels", "names", "first"),
    [
        (["war|love", "love", ""], ["love", "war"], [1, 1]),
        ([["war"], [], ["love"]], ["love", "war"], [0, 1]),
        ([{"war": 0, "love": 1}, {"war": 1}], ["love", "war"], [1, 0]),
        ([[1, 0, 1], [0, 0, 1]], ["0", "1", "2"], [1, 0, 1]),
        ([[2, 10], [2]], ["2", "10"], [1, 1]),
    ],
)
def test_several_labels_are_read_from_texts_lists_objects_and_zeros_and_ones(labels, names, first):
    task = fitted([{"label": label} for label in labels])
    assert (task.problem, task.labels, task.encoded_label({"label": labels[0]})) == ("multi_label", names, first)


def test_a_comma_divides_where_the_user_says_that_there_are_several():
    task = fitted([{"label": "a, b"}, {"label": "c"}], problem="multi_label")
    assert task.encoded_label({"label": "c,a"}) == [1, 0, 1]


def test_labels_of_a_list_may_be_named_by_place_where_the_names_are_no_numbers():
    task = SequenceClassification(problem="multi_label", labels=["x", "y", "z"], multi_hot=False)
    assert task.encoded_label({"label": [2, 0]}) == [1, 0, 1]


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        (fitted(GENRES), "war|peace", r"'label' is none of love, war \(--task.labels names all labels\)$"),
        (fitted(GENRES), None, "no 'label'"),
        (fitted(GENRES, multi_hot=True, labels=["love", "war"]), [1, 0, 1], "no list of 2 zeros and ones"),
        (fitted(SCORES), "secret", "'label' is no number$"),
        (fitted(SCORES), None, "no 'label'"),
        (fitted(SCORES), [1.0, 2.0], "2 numbers where 1 are learnt"),
    ],
)
def test_a_wrong_label_says_what_is_wrong_and_not_the_row(task, label, message):
    with pytest.raises(LabelError, match=message):
        task.encode({"text": "secret", "label": label}, tokenizer(), 64)


@pytest.mark.parametrize(
    "rows", [GENRES, SCORES, [{"text": "x", "label": [0.5, None]}, {"text": "y", "label": [1, 2.0]}]]
)
def test_records_sum_to_the_loss_over_its_targets_and_a_blank_batch_has_none(rows):
    task = fitted(rows)
    model = tiny("bert", num_labels=task.model_options()["num_labels"])
    batch = task.collate([task.encode(row, tokenizer(), 64) for row in rows], tokenizer())
    found = model(**task.inputs(batch))
    records = task.score(found, batch)
    assert_close(sum(record["loss"] for record in records), task.loss(found, batch).item())
    assert (
        sum(record["targets"] for record in records)
        == task.targets(batch)
        == {"value": 3, "love": 6, "value_0": 3}[task.model_options()["id2label"][0]]
    )
    blank = task.blank(batch)
    loss = task.loss(found, blank)
    loss.backward()
    assert (task.targets(blank), loss.item()) == (0, 0.0)


def test_a_row_to_be_predicted_needs_no_label_and_is_decided_all_the_same():
    for rows in (GENRES, SCORES, [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]):
        task = fitted(rows)
        batch = task.collate([task.encode(task.unlabelled({"text": "a"}), tokenizer(), 64)], tokenizer())
        logits = torch.zeros(1, task.model_options()["num_labels"])
        record = task.judge({}, task.score(SimpleNamespace(logits=logits), batch), None)
        assert (task.targets(batch), record["label"], record["loss"]) == (0, None, 0.0)
        assert (
            record["prediction"]
            == {"multi_label": ["love", "war"], "regression": 0.0, "single_label": "x"}[task.problem]
        )


def test_balanced_weights_are_resolved_once_and_leave_the_records_loss_plain():
    rows = [{"label": "a"}] * 3 + [{"label": "b"}]
    task = fitted(rows, class_weights="balanced")
    assert task.class_weights == {"a": 4 / 6, "b": 2.0}
    batch = {"labels": torch.tensor([0, 1])}
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    plain = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    assert_close(task.loss(SimpleNamespace(logits=logits), batch), plain @ torch.tensor([4 / 6, 2.0]))
    assert [record["loss"] for record in task.score(SimpleNamespace(logits=logits), batch)] == pytest.approx(
        plain.tolist()
    )
    several = fitted([{"label": ["a"]}, {"label": ["a", "b"]}, {"label": ["a"]}], class_weights="balanced")
    assert several.class_weights == {"a": 1.0, "b": 2.0}


TWO = [{"label": "no"}, {"label": "yes"}]


def said(task, *probabilities):
    """The prediction of rows whose second label has this probability."""
    rows = torch.tensor([[0.0, torch.logit(torch.tensor(p))] for p in probabilities])
    records = task.score(SimpleNamespace(logits=rows), {"labels": torch.zeros(len(rows), dtype=torch.long)})
    return [task.judge({}, [record], None)["prediction"] for record in records]


def test_a_threshold_decides_between_two_labels():
    assert said(fitted(TWO), 0.4, 0.6) == ["no", "yes"]
    assert said(fitted(TWO, thresholds=0.3), 0.2, 0.4, 0.6) == ["no", "yes", "yes"]
    assert said(fitted(TWO, thresholds={"no": 0.7}, positive="no"), 0.2, 0.4, 0.6) == ["no", "yes", "yes"]


def test_thresholds_of_several_labels_are_by_label_and_else_a_half():
    task = fitted(GENRES, thresholds={"war": 0.9})
    batch = {"labels": torch.tensor([[1, 0]])}
    record = task.judge({}, task.score(outputs([0.1, 1.0]), batch), None)
    assert (record["prediction"], record["label"]) == (["love"], ["love"])


def test_tuned_thresholds_are_a_setting_that_survives_and_stands_in_the_models_configuration(tmp_path):
    task = fitted(TWO, thresholds="tune")
    assert said(task, 0.4, 0.6) == ["no", "yes"]  # until it is tuned
    logits = torch.tensor([[0.0, -3.0], [0.0, -1.0], [0.0, -0.5]])
    records = task.score(SimpleNamespace(logits=logits), {"labels": torch.tensor([0, 1, 1])})
    tuned = task.tune(records)
    expected = (torch.tensor([-3.0, -1.0]).sigmoid().sum() / 2).item()
    assert tuned.thresholds == {"yes": pytest.approx(expected)}
    assert [tuned.judge({}, [record], None)["prediction"] for record in records] == ["no", "yes", "yes"]
    assert Task.model_validate(tuned.model_dump(mode="json")) == tuned
    source = str(save_tiny(tmp_path / "base", "bert"))
    config = configure(Model(path=source), tuned, source)
    config.save_pretrained(tmp_path / "out")
    assert configure(Model(path=source), task, source).to_dict().get("thresholds") is None
    again = type(config).from_pretrained(tmp_path / "out")
    assert (again.thresholds, again.id2label, again.problem_type) == (
        tuned.thresholds, {0: "no", 1: "yes"}, "single_label_classification",
    )  # fmt: skip
    assert configure(Model(path=str(tmp_path / "out")), fitted(TWO), str(tmp_path / "out")).thresholds is None


def test_rows_without_a_known_label_tune_nothing():
    task = fitted(GENRES, thresholds="tune")
    known = [{"label": ["war"], "probabilities": [0.1, 0.3]}, {"label": [], "probabilities": [0.2, 0.1]}]
    blind = [{"label": None, "probabilities": [0.9, 0.05]}]
    assert (
        task.tune(known + blind).thresholds == task.tune(known).thresholds == {"love": 0.5, "war": pytest.approx(0.2)}
    )


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([*TWO, {"label": "so"}], {"thresholds": 0.3}, "these are 3 that exclude each other"),
        (TWO, {"thresholds": {"no": 0.3}}, "names 'no'; there are thresholds for yes"),
        (TWO, {"positive": "maybe"}, "--task.positive maybe is no label"),
        (TWO, {"class_weights": {"maybe": 2}}, "--task.class_weights names 'maybe'"),
        ([{"label": [1]}], {}, "1 label"),
    ],
)
def test_settings_that_are_not_of_these_labels_are_refused(rows, settings, message):
    with pytest.raises(LabelError, match=message):
        fitted(rows, **settings)


@pytest.mark.parametrize(
    "settings", [{"thresholds": 1.5}, {"thresholds": {"a": -1}}, {"label_smoothing": 1}, {"class_weights": {"a": -1}}]
)
def test_impossible_numbers_are_refused(settings):
    with pytest.raises(ValidationError):
        SequenceClassification(**settings)


def test_idle_settings_and_thresholds_without_validation_rows_are_conflicts():
    task = {
        "name": "sequence_classification",
        "problem": "regression",
        "focal": 2,
        "thresholds": "tune",
        "distance": "mae",
    }
    run = Run.model_validate({"model": "x", "task": task, "data": {"train": "x", "holdout": 0}})
    found = list(run.task.conflicts(run))
    assert [sentence.split()[0] for sentence in found] == ["--task.focal", "--task.thresholds", "--task.thresholds"]
    assert "validation rows" in found[-1]


def test_the_metrics_are_those_of_the_problem():
    assert SequenceClassification().default_metrics() == ("loss", "accuracy", "f1")
    assert fitted(GENRES).default_metrics() == ("loss", "f1", "accuracy", "hamming")
    assert fitted(SCORES).default_metrics() == ("loss", "mae", "pearson", "spearman")


def test_head_and_tail_are_marked_in_the_text():
    row = {"text": "Acme bought Bolt.", "head": [12, 16], "tail": {"start": 0, "end": 4}, "label": "a"}
    assert SequenceClassification().text(row) == "<e2> Acme </e2> bought <e1> Bolt </e1>."
    inner = {"text": "big Acme Inc", "head": [0, 12], "tail": [4, 8]}
    assert SequenceClassification(markers="[ ] ( )").text(inner) == "[ big ( Acme ) Inc ]"
    assert SequenceClassification().text({"text": "<e1>A</e1> of <e2>B</e2>"}) == "<e1>A</e1> of <e2>B</e2>"


@pytest.mark.parametrize(
    ("span", "message"), [([0, 99], "lies outside"), ("Acme", "is no"), (None, "is no"), ([3, 3], "outside")]
)
def test_a_span_that_is_not_in_the_text_is_said_without_the_text(span, message):
    with pytest.raises(RowError, match=f"'tail'.* {message}"):
        SequenceClassification().text({"text": "secret", "head": [0, 2], "tail": span})


def test_an_entity_behind_the_cut_is_a_row_to_leave_out():
    task = fitted(TWO)
    row = {"text": "Acme " + "and so on " * 30 + "Bolt", "head": [0, 4], "tail": [305, 309], "label": "no"}
    with pytest.raises(RowError, match="cut off"):
        Encoder(task, tokenizer(), 32).windows(row)
