"""eval and predict on what is damaged, gone or of another kind, and where nothing can be written; nothing is lost by it.

The model is an adapter of several labels: its export has to be compared as it decides, label by label.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftkit.cli.main import main
from tests.flows.conftest import Refused
from tests.launch import ROOT, run
from tests.tiny import save_tiny

ROWS = [{"text": f"text {at}", "label": ["A", "B", "C"][: 1 + at % 3]} for at in range(8)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its adapter, and rows."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "bert", "bert")
    write(folder / "rows.jsonl", ROWS)
    write(folder / "empty.jsonl", [])
    write(folder / "blank.jsonl", [{"text": ""}, {"text": None}])
    write(folder / "taken.jsonl", [{"text": "a", "prediction": "B"}])
    write(folder / "told.jsonl", [{"text": "a", "error": "none"}])
    write(folder / "chat.jsonl", [{"prompt": "a", "response": "b"}])
    write(folder / "other.jsonl", [{"text": "a", "label": ["Z"]}])
    settings = {"model": f"{folder}/bert", "task": "sequence_classification", "data": f"{folder}/rows.jsonl"}
    settings |= {"strategy": "lora", "steps": "1", "eval.before": "false", "out": f"{folder}/run"}
    assert main(["train", *(word for name, value in settings.items() for word in (f"--{name}", value))]) == 0
    return folder


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def copy(place: Path, tmp_path: Path) -> Path:
    """The run, to be damaged."""
    shutil.copytree(place / "run", tmp_path / "run")
    return tmp_path / "run"


ASKED: dict[str, tuple[list[str], int, str]] = {
    "another task's rows": (["eval", "{run}", "{data}/chat.jsonl"], 2, "lacks a column"),
    "another task's rows, answered": (["predict", "{run}", "{data}/chat.jsonl"], 2, "reads `text`; it has: prompt"),
    "other labels": (["eval", "{run}", "{data}/other.jsonl"], 2, "other.jsonl line 1: 'label' is none of A, B, C"),
    "no rows": (["eval", "{run}", "{data}/empty.jsonl"], 2, "empty.jsonl is empty"),
    "no rows, answered": (["predict", "{run}", "{data}/empty.jsonl"], 2, "empty.jsonl is empty"),
    "no good row": (["eval", "{run}", "{data}/blank.jsonl"], 2, "lacks a column"),
    "a column of an answer's": (["predict", "{run}", "{data}/taken.jsonl"], 2, "a column 'prediction', as the answers"),
    "a column of errors": (["predict", "{run}", "{data}/told.jsonl"], 2, "a column 'error', in which"),
    "a metric of text": (["eval", "{run}", "{data}/rows.jsonl", "--metrics", "bleu"], 2, "--metrics bleu scores"),
    "no samples": (["eval", "{run}", "{data}/rows.jsonl", "--bootstrap", "-1"], 2, "--bootstrap -1: a number of"),
    "numbers nowhere": (["eval", "{run}", "{data}/rows.jsonl", "--out", "{out}/no/n.json"], 2, "no folder {out}/no"),
    "numbers unwritten": (["eval", "{run}", "{data}/rows.jsonl", "--out", "/proc/n.json"], 1, "cannot be written"),
    "answers unwritten": (["predict", "{run}", "{data}/rows.jsonl", "--out", "/proc/a.jsonl"], 1, "cannot be written"),
    "no such step": (["eval", "{run}", "{data}/rows.jsonl", "--checkpoint", "7"], 2, "no such step; it has 1"),
}


@pytest.mark.parametrize("case", ASKED)
def test_it_is_refused_and_leaves_nothing(case: str, place: Path, tmp_path: Path, refused: Refused) -> None:
    words, code, told = ASKED[case]
    known = {"run": place / "run", "data": place, "out": tmp_path}
    asked = [word.format(**known) for word in words]
    if asked[0] == "predict" and "--out" not in asked:
        asked += ["--out", f"{tmp_path}/answers.jsonl"]
    assert told.format(**known) in refused(asked, code)
    assert not list(tmp_path.iterdir())


NEEDED = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", NEEDED)
def test_an_export_that_lacks_a_file_does_not_answer(name: str, copy: Path, place: Path, refused: Refused) -> None:
    """Without its tokenizer's settings it would answer, and otherwise than the model that was certified."""
    (copy / "export/adapter" / name).unlink()
    said = refused(["eval", f"{copy}/export/adapter", f"{place}/rows.jsonl"], 2)
    assert f"{copy}/export/adapter lacks {name}, which it was exported with" in said


@pytest.mark.parametrize("name", [*NEEDED, "peftkit.json"])
def test_an_export_that_was_cut_short_does_not_answer(name: str, copy: Path, place: Path, refused: Refused) -> None:
    file = copy / "export/adapter" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert f"{copy}/export/adapter" in refused(["eval", f"{copy}/export/adapter", f"{place}/rows.jsonl"], 2)


@pytest.mark.parametrize("name", ["manifest.json", "progress.json", "trained-00001-of-00001.safetensors"])
def test_a_damaged_checkpoint_is_named(name: str, copy: Path, place: Path, refused: Refused) -> None:
    (copy / "checkpoints/step-000001" / name).unlink()
    said = refused(["eval", f"{copy}", f"{place}/rows.jsonl"], 1)
    assert f"{copy}/checkpoints/step-000001" in said and name in said


def test_a_base_that_has_gone_is_named(copy: Path, place: Path, tmp_path: Path, refused: Refused) -> None:
    for file in (copy / "config.yaml", copy / "export/adapter/peftkit.json"):
        file.write_text(file.read_text().replace(f"{place}/bert", f"{tmp_path}/gone"))
    assert f"--model {tmp_path}/gone: there is no such" in refused(["eval", f"{copy}", f"{place}/rows.jsonl"], 2)
    said = refused(["eval", f"{copy}/export/adapter", f"{place}/rows.jsonl"], 2)
    assert f"its base model {tmp_path}/gone is not there; put it back" in said


def test_rows_that_cannot_be_answered_at_all_end_with_an_error(place: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "answers.jsonl"
    said = refused(["predict", f"{place}/run", f"{place}/blank.jsonl", "--out", f"{out}"], 2)
    assert f"none of its rows could be answered; the column `error` of {out} says why" in said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [{"text": "", "error": "no 'text'"}, {"text": None, "error": "no 'text'"}]


@pytest.mark.launch
def test_a_full_disk_keeps_the_answers_that_were_given(place: Path, tmp_path: Path) -> None:
    """No file may grow beyond 16 KiB; the same command goes on where there is room again."""
    many = [{"text": f"text {at} " + "and so on " * 6} for at in range(600)]
    write(place / "many.jsonl", many)
    words = ["predict", f"{place}/run", f"{place}/many.jsonl", "--out", f"{tmp_path}/answers.csv"]
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from peftkit.cli.main import main; sys.exit(main({words}))"
    done = run(["bash", "-c", f'ulimit -f 16; exec python -c "{start}"'])
    assert done.returncode == 1, done.stdout
    assert "answers.csv cannot be written (File too large); the rows before lie in" in done.stdout
    assert "Traceback" not in done.stdout
    assert main(words) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["answers.csv"]
    texts = [line.split(",")[0] for line in (tmp_path / "answers.csv").read_text().splitlines()[1:]]
    assert texts == [row["text"] for row in many]
