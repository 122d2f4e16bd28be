"""What is wrong with the input is told in one message, before anything is written where a good file would be looked for.

Through the command line's own `main`, in this process; where a resource has to run out, in a process of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from peftkit.cli.main import main
from peftkit.engine.checkpoint import verify
from peftkit.run_folder import RunFolder
from tests.flows.conftest import Refused
from tests.launch import ROOT, run
from tests.tiny import save_tiny, tokenizer

Words = list[str]
ROWS = 12
STARTS = {"logs", "errors", "status.json"}
"""What every start of a run writes."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and rows, good ones and bad ones."""
    folder = tmp_path_factory.mktemp("bad")
    save_tiny(folder / "llama", "llama")
    save_tiny(folder / "bert", "bert")
    _bad_models(folder)
    chat: list[Any] = [{"prompt": f"say {row}", "response": "word " * (1 + row % 3)} for row in range(ROWS)]
    lines(folder / "chat.jsonl", chat)
    lines(folder / "renamed.jsonl", [{"promt": row["prompt"], "response": row["response"]} for row in chat])
    lines(folder / "broken.jsonl", [*chat[:6], '{"prompt": "say", "response"', *chat[6:]])
    lines(folder / "empty.jsonl", [])
    lines(folder / "long.jsonl", [{"prompt": "and so on " * 40, "response": "cut off"}] * ROWS)
    some = [{**row, "prompt": "and so on " * 40} if number in (2, 5) else row for number, row in enumerate(chat)]
    lines(folder / "some-long.jsonl", some)
    lines(folder / "labels.jsonl", [{"text": f"text {row}", "label": "AB"[row % 2]} for row in range(ROWS)])
    lines(folder / "other-labels.jsonl", [{"text": "text", "label": label} for label in ("A", "B", "C", "A", "C")])
    return folder


def _bad_models(folder: Path) -> None:
    shutil.copytree(folder / "llama", folder / "no-config")
    (folder / "no-config/config.json").unlink()
    shutil.copytree(folder / "llama", folder / "cut-short")
    weights = folder / "cut-short/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    shutil.copytree(folder / "llama", folder / "small-vocabulary")
    larger: PreTrainedTokenizerFast = tokenizer()
    larger.add_tokens([f"<extra {number}>" for number in range(50)])
    larger.save_pretrained(folder / "small-vocabulary")


def lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def train(folder: Path, run: Path, /, **changed: str) -> Words:
    """`peftkit train` on the good input, of which the named settings are changed."""
    settings = {"model": f"{folder}/llama", "data": f"{folder}/chat.jsonl", "strategy": "head_only", "steps": "2"}
    settings |= {"out": f"{run}", "batch.total": "4", "eval.before": "false"}
    settings |= {name.replace("__", "."): value for name, value in changed.items()}
    return ["train", *(word for name, value in settings.items() for word in (f"--{name}", value))]


LABELS = {"model": "{data}/bert", "task": "sequence_classification", "data": "{data}/labels.jsonl"}
REFUSED: dict[str, tuple[dict[str, str], list[str]]] = {
    "no such model": ({"model": "{data}/lama"}, ["--model {data}/lama: there is no such file or folder", "'llama'"]),
    "a folder without config.json": ({"model": "{data}/no-config"}, ["--model {data}/no-config has no config.json"]),
    "weights cut short": (
        {"model": "{data}/cut-short"},
        ["{data}/cut-short/model.safetensors is corrupt or cut short"],
    ),
    "a vocabulary smaller than the tokenizer": (
        {"model": "{data}/small-vocabulary"},
        ["the tokenizer has", "tokens more than the model's vocabulary of 320", "--model.add_tokens"],
    ),
    "no such data": (
        {"data": "{data}/chatt.jsonl"},
        ["there is no file {data}/chatt.jsonl", "did you mean {data}/chat.jsonl"],
    ),
    "an unknown column": (
        {"data": "{data}/renamed.jsonl"},
        ["renamed.jsonl lacks a column", "`prompt` and `response`", "it has: promt, response", "--data.columns"],
    ),
    "a column that is not there": (
        {"data__columns": "{{prompt: question}}"},
        ["--data.columns prompt: chat.jsonl has no column 'question'", "it has: prompt, response"],
    ),
    "a broken line": ({"data": "{data}/broken.jsonl"}, ["broken.jsonl line 7, column", "broken JSON"]),
    "an empty file": ({"data": "{data}/empty.jsonl"}, ["empty.jsonl is empty"]),
    "an empty validation split": ({"data__validation": "{data}/empty.jsonl"}, ["empty.jsonl is empty"]),
    "no targets left": (
        {"data": "{data}/long.jsonl", "data__max_length": "16"},
        ["long.jsonl: none of its", "can be learnt from", "rows left out"],
    ),
    "a label outside the set": (
        LABELS | {"data__validation": "{data}/other-labels.jsonl"},
        ["other-labels.jsonl line 3, 5: 'label' is none of A, B", "--task.labels"],
    ),
    "a task without rows": (
        {"task": "causal_lm", "data": ""},
        ["--task causal_lm needs --data.train, rows with `text`"],
    ),
    "a model without the part": (
        {"strategy": "encoder_only"},
        ["--strategy encoder_only", "decoder_only"],
    ),
    "an encoder that is to speak": (LABELS | {"task": "causal_lm"}, ["--task causal_lm needs a decoder"]),
    "a best that is no metric": ({"eval__best": "bleurt"}, ["--eval.best bleurt is no number that is computed"]),
    "a best that is not computed": ({"eval__best": "f1"}, ["--eval.best f1 is not computed; add it: --eval.metrics"]),
    "a device that cannot": ({"precision": "fp16"}, ["--precision fp16: this device (cpu) cannot compute in it"]),
    "another optimizer in the file": ({"optim": "adafactor"}, ["--optim adafactor", "--deepspeed zero0"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_before_anything_is_written(case: str, data: Path, tmp_path: Path, refused: Refused) -> None:
    changed, told = REFUSED[case]
    words = train(data, tmp_path / "run", **{name: value.format(data=data) for name, value in changed.items()})
    if case == "a task without rows":
        words = [word for word in words if word not in ("--data", "")]
    said = refused(words, 2)
    for part in told:
        assert part.format(data=data) in said
    left = {path.name for path in (tmp_path / "run").glob("*")}
    assert left <= {"logs", "status.json", "errors", "lock"}, "no config.yaml, checkpoint, metrics or export"
    again = train(data, tmp_path / "run")
    assert main([*again, "--dry-run"]) == 0, "and the folder can be used once the input is mended"


def test_rows_without_targets_are_counted_and_the_run_goes_on(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changed = {"data": f"{data}/some-long.jsonl", "data__holdout": "0", "data__max_length": "48"}
    assert main(train(data, tmp_path / "run", **changed)) == 0
    out, said = capfd.readouterr()
    assert "train: 10 rows" in out
    assert "2 rows left out" in out and "lines 3, 6" in out
    assert not said
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "split" not in row] == [1, 2]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(train(data, out, checkpoint__every="1")) == 0
    return out


def everything(folder: Path) -> dict[str, bytes]:
    """A run's files but what its last start says of itself."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not {*path.parts} & STARTS)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_folder_of_another_run_is_left_alone(data: Path, finished: Path, refused: Refused) -> None:
    before = everything(finished)
    said = refused(train(data, finished), 2)
    assert f"--out {finished} belongs to another run" in said and "--resume" in said
    assert everything(finished) == before


def test_a_folder_of_something_else_is_left_alone(data: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"a picture")
    assert f"--out {tmp_path} holds something else" in refused(train(data, tmp_path), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_run_whose_base_has_changed_is_not_resumed(data: Path, tmp_path: Path, refused: Refused) -> None:
    """Its weights would be put on others than those they were trained on."""
    shutil.copytree(data / "llama", tmp_path / "llama")
    assert main(train(data, tmp_path / "run", model=f"{tmp_path}/llama")) == 0
    weights = load_file(tmp_path / "llama/model.safetensors")
    moved = {name: value + 1e-3 for name, value in weights.items()}
    save_file(moved, tmp_path / "llama/model.safetensors", metadata={"format": "pt"})
    before = everything(tmp_path / "run")
    said = refused(["train", "--out", f"{tmp_path}/run", "--resume", "--steps", "4"], 1)
    assert f"step-000002 was trained on other weights than those now in {tmp_path}/llama" in said
    assert everything(tmp_path / "run") == before
    said = refused(["export", f"{tmp_path}/run", "--to", "merged"], 1)
    assert "was trained on other weights" in said
    assert everything(tmp_path / "run") == before


def test_a_run_is_not_resumed_as_another(finished: Path, refused: Refused) -> None:
    before = everything(finished)
    said = refused(["train", "--out", f"{finished}", "--resume", "--steps", "4", "--strategy", "lora"], 2)
    assert "--strategy lora differs from head_only" in said
    assert everything(finished) == before


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_a_checkpoint_of_another_strategy_is_not_resumed(
    strategy: str, finished: Path, tmp_path: Path, refused: Refused
) -> None:
    """Even where the settings have been changed with the folder's own."""
    shutil.copytree(finished, tmp_path / "run")
    settings = (tmp_path / "run/config.yaml").read_text()
    changed = re.sub(r"strategy: .*", f"strategy: {{name: {strategy}}}", settings)
    assert changed != settings
    (tmp_path / "run/config.yaml").write_text(changed)
    before = everything(tmp_path / "run")
    said = refused(["train", "--out", f"{tmp_path}/run", "--resume", "--steps", "4"], 1)
    assert f"step-000002 is of another run: its --strategy is head_only, and here {strategy}" in said
    assert everything(tmp_path / "run") == before


def test_another_runs_checkpoint_is_named_and_passed_over(
    data: Path, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    assert main(train(data, tmp_path / "other", seed="7")) == 0
    shutil.copytree(tmp_path / "other/checkpoints/step-000002", tmp_path / "run/checkpoints/step-000003")
    assert main(["train", "--out", f"{tmp_path}/run", "--resume", "--steps", "4"]) == 0
    said = capfd.readouterr().out
    assert "step-000003 is of another run: its --seed is 7, and here 42" in said
    assert "going on from" in said and "run/checkpoints/step-000002" in said
    assert RunFolder(tmp_path / "run").checkpoint_steps()[-1] == 4


def test_a_run_whose_rows_have_changed_is_not_resumed(data: Path, tmp_path: Path, refused: Refused) -> None:
    """It would go on in the middle of other rows, and some would be learnt twice and others never."""
    shutil.copyfile(data / "chat.jsonl", tmp_path / "chat.jsonl")
    assert main(train(data, tmp_path / "run", data=f"{tmp_path}/chat.jsonl")) == 0
    before = everything(tmp_path / "run")
    rows = (tmp_path / "chat.jsonl").read_text()
    (tmp_path / "chat.jsonl").write_text(rows.replace("say 1", "speak 1"))
    said = refused(["train", "--out", f"{tmp_path}/run", "--resume", "--steps", "4"], 1)
    assert "step-000002 is of another run: it learnt other rows than --data has now; put back" in said
    assert everything(tmp_path / "run") == before
    (tmp_path / "chat.jsonl").write_text(rows)
    assert main(["train", "--out", f"{tmp_path}/run", "--resume", "--steps", "4"]) == 0


def test_only_runs_with_checkpoints_are_exported(data: Path, finished: Path, tmp_path: Path, refused: Refused) -> None:
    assert f"{tmp_path} is no run's folder: it has no config.yaml" in refused(["export", f"{tmp_path}"], 2)
    assert f"{tmp_path}/nothing is no run's folder" in refused(["export", f"{tmp_path}/nothing"], 2)
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("step-*"))
    said = refused(["export", f"{tmp_path}/run"], 1)
    assert f"{tmp_path}/run has no complete checkpoint to export" in said
    assert not (tmp_path / "run/export").exists()


@pytest.mark.launch
def test_a_full_disk_keeps_the_earlier_checkpoint_and_says_so(finished: Path, data: Path, tmp_path: Path) -> None:
    """No file may grow beyond 16 KiB, as if the disk were full in the middle of the weights."""
    assert main(train(data, tmp_path / "run", checkpoint__every="2", data__holdout="0")) == 0
    again = f"{sys.executable} {ROOT}/launch/train.py --out {tmp_path}/run --resume --steps 4"
    done = run(["bash", "-c", f"ulimit -f 16; exec {again}"])
    assert done.returncode == 1, done.stdout
    assert "peftkit: error: the checkpoint of step 4 could not be written: " in done.stdout
    assert "File too large" in done.stdout and "Traceback" not in done.stdout
    folder = RunFolder(tmp_path / "run")
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000002"]
    assert verify(folder.checkpoint(2)) == []
    assert main(["train", "--out", f"{tmp_path}/run", "--resume", "--steps", "4"]) == 0, "and it goes on from there"
    assert folder.checkpoint_steps() == [2, 4]
