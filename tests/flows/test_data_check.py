"""`peftkit data check` as a command: what it prints, writes and answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.cli.main import main
from peftkit.data.doctor import CHECKS
from tests.tiny import save_tiny

CONTENT = "the colour of the house is blue"
GOOD = [{"text": f"{CONTENT} number {at}", "label": "ab"[at % 2]} for at in range(6)]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The exit code and what was printed, for these training rows."""

    def of(lines: list[str], *words: str) -> tuple[int, str]:
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        data = ["--task", "sequence_classification", "--data.train", str(tmp_path / "a.jsonl")]
        code = main(["data", "check", *data, *words])
        told = capsys.readouterr()
        return code, told.out + told.err

    return of


def lines(*rows: dict) -> list[str]:
    return [json.dumps(row) for row in (*GOOD, *rows)]


def test_the_exit_code_is_1_exactly_for_errors(run):
    assert run(lines())[0] == 0
    assert run(lines(GOOD[0]))[0] == 0  # a duplicate is a warning
    assert run([*lines(), "{broken"])[0] == 1


def test_places_are_printed_and_contents_are_not(run, tmp_path):
    code, text = run([*lines(GOOD[1]), "", '{"text": "' + CONTENT, json.dumps({"text": CONTENT, "label": "A"})],
                     "--json", str(tmp_path / "found.json"))  # fmt: skip
    assert code == 1
    assert "error   broken  train: a.jsonl, 1 line: 9\n" in text
    assert "warning duplicates  train: a.jsonl, 1 line: 7\n" in text
    assert "'A' for 'a'" in text
    assert CONTENT not in text + (tmp_path / "found.json").read_text()


def test_json_has_what_is_printed(run, tmp_path):
    run(lines(GOOD[1], GOOD[1]), "--json", str(tmp_path / "found.json"))
    told = json.loads((tmp_path / "found.json").read_text())
    (one,) = told["findings"]
    assert (one["check"], one["split"], one["count"], one["rows"]) == ("duplicates", "train", 2, [7, 8])
    assert told["not_checked"] == sorted(name for name in CHECKS if CHECKS[name].model)
    assert run(lines(), "--json", str(tmp_path / "found.json"))[0] == 2  # it is there now


def test_fix_writes_beside_and_says_what(run, tmp_path):
    code, text = run(lines(GOOD[1], {"text": "x", "label": None}), "--fix", str(tmp_path / "out"))
    assert (code, [json.loads(line) for line in (tmp_path / "out/a.jsonl").read_text().splitlines()]) == (1, GOOD)
    (told,) = json.loads((tmp_path / "out/fixes.json").read_text())["files"]
    assert {(one["remedy"], *one["rows"]) for one in told["fixes"]} == {("deduplicate", 7), ("drop", 8)}
    assert (told["rows_before"], told["rows_after"]) == (8, 6)
    code, text = run(lines(), "--fix", str(tmp_path / "out"))
    assert (code, "is there already and nothing is overwritten" in text) == (2, True)


def test_only_and_skip_choose_checks(run):
    rows = [*lines(GOOD[1]), "{broken"]
    assert run(rows, "--only", "duplicates")[0] == 0
    assert run(rows, "--skip=broken,blanks")[0] == 0
    assert run(rows, "--only", "dupes")[0] == 2


def test_the_limit_is_respected(run):
    assert run([*lines(), "{broken"], "--data.limit", "6") == run(lines())


def test_a_named_model_is_asked_too(run, tmp_path):
    model = save_tiny(tmp_path / "bert", "bert", num_labels=2)
    code, text = run(lines({"text": "long " * 200, "label": "a"}), "--model", str(model), "--data.max_length", "64")
    assert (code, "note    truncated  train: a.jsonl, 1 line: 7\n" in text) == (0, True)
    assert "no --model was named" not in text
