"""Every task through the whole street: one step, its checkpoint scored and asked again, with and without what is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftkit.config.run import Run
from peftkit.errors import PeftkitError
from peftkit.flows import evaluate, predict
from peftkit.flows.train import train
from peftkit.tasks import Task
from tests.cases import CASES
from tests.matrix import folder_of
from tests.serving.running import alike, running, uploading
from tests.tiny import save_tiny

ANSWERS = {
    "chat": {"generated"},
    "sequence_classification": {"prediction", "probabilities"},
    "sequence_classification encoder_decoder": {"prediction", "probabilities"},
    "sequence_classification multi_label": {"prediction", "probabilities"},
    "sequence_classification regression": {"prediction"},
    "sequence_classification relation": {"prediction", "probabilities"},
    "token_classification": {"predicted_tags"},
    "question_answering": {"answer", "no_answer", "spans"},
    "seq2seq": {"generated"},
    "multiple_choice": {"prediction", "probabilities"},
    "image_classification": {"prediction", "probabilities"},
    "audio_classification": {"prediction", "probabilities"},
    "speech_recognition": {"generated"},
    "speech_recognition ctc": {"generated"},
    "preference orpo": {"chosen_reward", "rejected_reward", "margin"},
    "preference kto": {"chosen_reward", "rejected_reward", "margin"},
    "preference": {"chosen_reward", "rejected_reward", "margin"},
    "reward": {"chosen_reward", "rejected_reward", "margin"},
}
"""What a prediction of each task says. The others (plain text, masked words) have nothing to say of a row but their scores."""


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_scores_as_in_training_and_answers(case: str, tmp_path: Path) -> None:
    what = CASES[case]
    family = what.families[0]
    save_tiny(tmp_path / folder_of(case, family), family, **what.model)
    rows = what.rows(tmp_path)[:8]
    file = write(tmp_path / "rows.jsonl", rows)
    settings = {
        "model": str(tmp_path / folder_of(case, family)),
        "task": {"name": case, **what.settings},
        "strategy": "full",
        "data": {"train": str(file), "validation": str(file)},
        "steps": 1,
        "eval": {"before": False},
        **({"generate": {"max_new_tokens": 3}} if "generated" in ANSWERS.get(case, ()) else {}),
        "out": str(tmp_path / "run"),
    }
    run = train(Run.model_validate(settings))
    (scored,) = [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "split" in row]
    found = evaluate.evaluate(run, evaluate.Asked(str(file)))
    for name, number in found.items():
        assert number == pytest.approx(scored[name], rel=1e-4, abs=1e-6, nan_ok=True), name

    given = Task.registry[what.settings.get("name", case)].given
    blind = write(tmp_path / "blind.jsonl", [{name: row[name] for name in row if name not in given} for row in rows])
    asked = predict.Asked(
        str(blind),
        tmp_path / "answers.jsonl",
    )
    if case not in ANSWERS:
        with pytest.raises(PeftkitError, match="nothing to predict"):
            predict.predict(run, asked)
        return
    answers = [json.loads(line) for line in predict.predict(run, asked).read_text().splitlines()]
    for row, answer in zip(rows, answers, strict=True):
        assert {name: answer[name] for name in row if name not in given} == {
            name: value for name, value in row.items() if name not in given
        }
        assert answer.keys() - row.keys() == ANSWERS[case]
    with running({"run": run}) as service:
        over_http = service.post(
            "/predict", [uploading(json.loads(line)) for line in blind.read_text().splitlines()]
        ).json()
    for answer, expected in zip(over_http, answers, strict=True):
        assert answer.keys() == ANSWERS[case]
        assert alike(answer, {name: expected[name] for name in answer})
