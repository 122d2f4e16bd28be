"""A metric of the `evaluate` library is read from a word, fed by the task, and its numbers are told by its name."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from peftkit.config.read import load, read, write
from peftkit.errors import ConfigError
from peftkit.metrics import Evaluate, Metric

SCRIPT = """
import datasets
import evaluate


class Mine(evaluate.Metric):
    def _info(self):
        features = datasets.Features({FEATURES})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, offset=0):
        {BODY}
"""
TEXTS = '{"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}'
NUMBERS = '{"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}'
ANSWERS = """{
    "predictions": {"id": datasets.Value("string"), "prediction_text": datasets.Value("string")},
    "references": {
        "id": datasets.Value("string"),
        "answers": datasets.Sequence({"text": datasets.Value("string"), "answer_start": datasets.Value("int32")}),
    },
}"""
SHARE = (
    'return {"share": sum(p in r for p, r in zip(predictions, references)) / len(predictions) + offset, "each": [1]}'
)
SUMS = 'return {"true": sum(references), "said": sum(predictions) + offset}'
IN_TEXT = (
    'return {"share": sum(p["prediction_text"] in r["answers"]["text"] for p, r in zip(predictions, references))'
    " / len(predictions)}"
)


def script(folder: Path, name: str, features: str, body: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(SCRIPT.replace("{FEATURES}", features).replace("{BODY}", body))
    return str(path)


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Scripts where the command is given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_metric.py").touch()
    (tmp_path / "metrics" / "mine").mkdir(parents=True)


def test_words_are_read(beside):
    run = read(["--task", "chat", "--eval.metrics", "hub:squad", "bleu", "./my_metric.py", "metrics/mine"])
    paths = [getattr(metric, "path", metric.name) for metric in run.eval.metrics]
    assert paths == ["hub:squad", "bleu", "./my_metric.py", "metrics/mine"]
    assert [metric.called for metric in run.eval.metrics] == ["hub:squad", "bleu", "my_metric", "mine"]
    assert read(["--task", "chat", "--eval.metrics", "hub:squad"]).eval.metrics == [Evaluate(path="hub:squad")]


def test_it_is_written_and_read_again(tmp_path, beside):
    run = read(["--task", "chat", "--eval.metrics", "hub:squad", "./my_metric.py"])
    file = tmp_path / "config.yaml"
    file.write_text(write(run))
    assert load(file) == run


def test_a_script_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"--eval\.metrics \./my_metric\.py: no such file"):
        read(["--task", "chat", "--eval.metrics", "./my_metric.py"])


def test_a_misspelt_name_is_still_one():
    with pytest.raises(ConfigError, match=r"no metric is named 'acuracy' .did you mean 'accuracy'"):
        read(["--task", "chat", "--eval.metrics", "acuracy"])


def test_texts_and_a_list_that_it_wants(tmp_path):
    metric = Metric.model_validate(script(tmp_path, "in_list", TEXTS, SHARE))
    rows = [
        {"generated": "a", "reference": "a"},
        {"generated": "b", "reference": ["c", "b"]},
        {"generated": "x", "reference": None},
        {"generated": "d", "reference": "e"},
    ]
    assert metric.compute(rows) == {"in_list": pytest.approx(2 / 3)}
    shifted = Evaluate(path=metric.path, options={"offset": 1})
    assert shifted.compute(rows) == {"in_list": pytest.approx(5 / 3)}
    assert math.isnan(metric.compute(rows[2:3])["in_list"])


def test_labels_become_numbers_in_the_task_s_order(tmp_path):
    metric = Evaluate(path=script(tmp_path, "sums", NUMBERS, SUMS))
    task = SimpleNamespace(metrics=("loss", "accuracy"), labels=["no", "yes", "maybe"])
    rows = [{"label": "maybe", "prediction": "yes", "probabilities": [0, 1, 0]}, {"label": "no", "prediction": "maybe"}]
    fitted = metric.fit(task)
    assert fitted.needs == ("prediction", "label")
    assert fitted.compute(rows) == {"sums": 2, "sums/said": 3}


def test_answers_are_given_as_squad_has_them(tmp_path):
    metric = Evaluate(path=script(tmp_path, "quiz", ANSWERS, IN_TEXT)).fit(SimpleNamespace(metrics=("loss", "qa_f1")))
    rows = [{"answers": ["x", "y"], "answer": "y"}, {"answers": [], "answer": ""}]
    assert metric.compute(rows) == {"quiz": 0.5}


def test_the_keys_that_are_given():
    def needs(*metrics, **settings):
        return Evaluate(path="hub:x", **settings).fit(SimpleNamespace(metrics=metrics)).needs

    assert needs("loss", "bleu") == ("generated", "reference")
    assert needs("loss", "perplexity") == ("generated", "reference")
    assert needs("loss", "entity_f1") == ("predicted_tags", "tags")
    assert needs("loss", "f1", references="gold") == ("prediction", "gold")
    assert Evaluate(path="hub:x", predictions="p", references="r").needs == ("p", "r")


def test_what_it_does_not_take_is_told(tmp_path):
    metric = Evaluate(path=script(tmp_path, "numbers", NUMBERS, SUMS))
    with pytest.raises(ConfigError, match=r"numbers\.py does not take predictions=generated, references=reference"):
        metric.compute([{"generated": "a", "reference": "b"}])


def test_a_metric_that_is_not_there(tmp_path):
    missing = str(tmp_path / "none.py")
    told = list(Evaluate(path=missing).conflicts(None))
    assert told == [f"--eval.metrics {missing}: no such file; a metric of the hub is written hub:NAME"]
    with pytest.raises(ConfigError, match=r"none\.py cannot be loaded"):
        Evaluate(path=missing).compute([{"label": "a", "prediction": "a"}])
    assert not list(Evaluate(path="hub:squad").conflicts(None))


def test_a_name_that_the_hub_does_not_give():
    metric = Metric.model_validate("hub:peftkit-tests/there-is-none")
    with pytest.raises(ConfigError, match=r"hub:peftkit-tests/there-is-none cannot be loaded .not on the hub, or"):
        metric.compute([{"label": "a", "prediction": "a"}])


def test_which_way_is_better_is_a_setting():
    assert Evaluate(path="hub:wer").higher_is_better
    assert not Evaluate(path="hub:wer", lower_is_better=True).higher_is_better
