"""What is wrong with the rows, the settings or the model of each task is told in one message; no row stops a whole file.

Most cases are `--dry-run`: it reads and encodes the rows and makes the model without weights, and trains nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from peftkit.cli.main import main
from tests.flows.conftest import Refused
from tests.tiny import save_image, save_sound, save_tiny

Rows = list[dict[str, Any]]
COUNT = 6
WORDS, TAGS = ["Ann", "likes", "New", "York"], ["B-PER", "O", "B-LOC", "I-LOC"]
ANSWERS = {"text": ["a house"], "answer_start": [6]}
TEXT: dict[str, tuple[str, Any]] = {
    "sequence_classification": ("bert", lambda at: {"text": f"text {at}", "label": "AB"[at % 2]}),
    "multi_label": ("bert", lambda at: {"text": f"text {at}", "label": ["A", "B", "C"][: 1 + at % 3]}),
    "regression": ("bert", lambda at: {"text": f"text {at}", "label": at + 0.5}),
    "token_classification": ("bert", lambda at: {"tokens": WORDS, "tags": TAGS}),
    "entities": (
        "bert",
        lambda at: {"text": "Ann lives here", "entities": [{"start": 0, "end": 3, "label": "PER"}]},
    ),
    "question_answering": (
        "bert",
        lambda at: {"question": "what is it", "context": "it is a house", "answers": ANSWERS},
    ),
    "seq2seq": ("t5", lambda at: {"source": f"good day {at}", "target": f"guten Tag {at}"}),
    "multiple_choice": ("bert", lambda at: {"context": "it rains", "choices": ["a", "b", "c"], "label": at % 3}),
    "masked_lm": ("bert", lambda at: {"text": f"some words {at}"}),
    "causal_lm": ("llama", lambda at: {"text": f"some words {at}"}),
    "chat": ("llama", lambda at: {"prompt": f"say {at}", "response": "word"}),
    "preference": ("llama", lambda at: {"prompt": "say", "chosen": f"good {at}", "rejected": f"bad {at}"}),
    "reward": ("llama", lambda at: {"prompt": "say", "chosen": f"good {at}", "rejected": f"bad {at}", "margin": 1}),
}
SEEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "image_classification": ("vit", ("image", "label")),
    "audio_classification": ("wav2vec2", ("audio", "label")),
    "speech_recognition": ("wav2vec2", ("audio", "text")),
}
NAMES = {"multi_label": "sequence_classification", "regression": "sequence_classification"}
NAMES |= {"entities": "token_classification"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file of each task, a model of each family, and files that are no images and no sounds."""
    folder = tmp_path_factory.mktemp("tasks")
    for family in ("bert", "llama", "t5", "vit", "wav2vec2"):
        save_tiny(folder / family, family)
    shutil.copytree(folder / "llama", folder / "no-template")
    (folder / "no-template/chat_template.jinja").unlink()
    image, sound = save_image(folder / "good.png", 1), save_sound(folder / "good.wav", 1, 0.2)
    save_sound(folder / "long.wav", 1, 1.5)
    (folder / "cut.png").write_bytes(Path(image).read_bytes()[:60])
    (folder / "text.png").write_text("no image")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "table.csv").write_text('text,label\ngood,A\n"bad,B\nfine,A\n')
    (folder / "width.conll").write_text("a O\nb B-X\n\nc O extra\n")
    for task, (_, row) in TEXT.items():
        write(folder / f"{task}.jsonl", [row(at) for at in range(COUNT)])
    for task in SEEN:
        rows = [{"image": image, "audio": sound, "label": "AB"[at % 2], "text": "a book"} for at in range(COUNT)]
        write(folder / f"{task}.jsonl", [{name: row[name] for name in SEEN[task][1]} for row in rows])
    return folder


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(data: Path, out: Path, task: str, /, **changed: str) -> list[str]:
    """`peftkit train --dry-run` on the task's good input, with the named settings changed."""
    family = {**TEXT, **SEEN}[task][0]
    settings = {"model": f"{data}/{family}", "task": NAMES.get(task, task), "data": f"{data}/{task}.jsonl"}
    settings |= {"strategy": "head_only" if task not in ("seq2seq", "masked_lm") else "full", "out": f"{out}"}
    settings |= {"task.mask_token": "<|user|>"} if task == "masked_lm" else {}
    settings |= {name.replace("__", "."): value for name, value in changed.items()}
    return ["train", "--dry-run", *(word for name, value in settings.items() if value for word in (f"--{name}", value))]


SPLIT = {"data__split": "group", "data__split_by": "where"}
LATEST = {"data__split": "time", "data__split_by": "when"}
REFUSED: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "thresholds of three labels": (
        "multiple",
        {"task__thresholds": "0.3"},
        ["--task.thresholds", "these are 3 that", "leave it out"],
    ),
    "thresholds of an unknown label": ("multi_label", {"task__thresholds": "{Z: 0.3}"}, ["names 'Z'", "A, B, C"]),
    "weights of an unknown label": (
        "token_classification",
        {"task__class_weights": "{Z: 2}"},
        ["--task.class_weights names 'Z', which is no label", "B-PER"],
    ),
    "weights where numbers are learnt": (
        "regression",
        {"task__class_weights": "balanced"},
        ["--task.class_weights says nothing where --task.problem is regression"],
    ),
    "balance of numbers": ("regression", {"data__balance": "oversample"}, ["--data.balance oversample"]),
    "a column to split by": (
        "sequence_classification",
        {"data__split": "group", "data__split_by": "autor"},
        ["no column 'autor'; it has: text, label"],
    ),
    "one group": ("one group", SPLIT, ["1 group by --data.split_by"]),
    "no time": ("no time", LATEST, ["line 1: --data.split time by 'when'", "no date, time or number as in 2024"]),
    "too many folds": ("chat", {"data__folds": "50"}, ["has 6 rows, too few for --data.folds 50"]),
    "a fold too far": ("chat", {"data__folds": "3", "data__fold": "3"}, ["--data.fold 3", "0 to 2"]),
    "temperature 0": ("chat", {"data__temperature": "0"}, ["--data.temperature takes a number above 0; got 0"]),
    "no synonyms": (
        "sequence_classification",
        {"data__augment__copies": "1", "data__augment__synonyms": "{data}/none.tsv"},
        ["--data.augment.synonyms {data}/none.tsv: there is no such file"],
    ),
    "copies of tags": ("token_classification", {"data__augment__copies": "1"}, ["--data.augment.copies 1", "no text"]),
    "by what is no column": ("chat", {"eval__by": "langage"}, ["no column 'langage'; it has: prompt, response"]),
    "an anchor that is not there": ("chat", {"eval__anchor": "{data}/old.jsonl"}, ["no file {data}/old.jsonl"]),
    "an anchor of other labels": (
        "sequence_classification",
        {"eval__anchor": "{data}/multiple.jsonl"},
        ["multiple.jsonl line 3, 6: 'label' is none of A, B", "--task.labels"],
    ),
    "a mixture's task": (
        "chat",
        {"data": "", "data__mixture": "[{{path: {data}/chat.jsonl, task: chta}}]"},
        ["--data.mixture: chat names no task: 'chta'", "did you mean 'chat'"],
    ),
    "a mixture of families": (
        "chat",
        {"data": "", "data__mixture": "[{{path: {data}/seq2seq.jsonl, task: seq2seq}}]"},
        ["--task seq2seq, which does not learn as --task chat does", "causal_lm, chat"],
    ),
    "a mixture's file": ("chat", {"data": "", "data__mixture": "[{{path: {data}/no.jsonl}}]"}, ["no file {data}/no"]),
    "bleu of labels": (
        "sequence_classification",
        {"eval__metrics": "bleu"},
        ["--eval.metrics bleu scores `reference` and `generated`, which --task sequence_classification has not", "f1"],
    ),
    "f1 of numbers": ("regression", {"eval__metrics": "f1"}, ["--eval.metrics f1", "it goes with: loss, mae, mse"]),
    "entities of answers": ("question_answering", {"eval__metrics": "entity_f1"}, ["`tags`", "exact_match, loss"]),
    "mcc of several labels": ("multi_label", {"eval__metrics": "mcc"}, ["mcc scores `label` (a name)", "hamming"]),
    "text of plain text": ("causal_lm", {"eval__metrics": "wer"}, ["--eval.metrics wer", "perplexity"]),
    "numbers of images": ("image_classification", {"eval__metrics": "mae"}, ["mae scores `label` (numbers)"]),
    "a metric without a name": ("chat", {"eval__metrics": "hub:"}, ["--eval.metrics hub: names no metric"]),
    "no beams": ("seq2seq", {"generate__num_beams": "0"}, ["--generate.num_beams takes a whole number above 0; got 0"]),
    "a quote that is open": ("sequence_classification", {"data": "{data}/table.csv"}, ["table.csv line 3", "quote"]),
    "a column too many": ("token_classification", {"data": "{data}/width.conll"}, ["width.conll line 4", "column"]),
    "another scheme": ("token_classification", {"task__scheme": "IOBES"}, ["'tags' break IOBES", "--task.scheme none"]),
    "other tags": ("token_classification", {"task__labels": "[O, B-Y]"}, ["one of its tags is none of O, B-Y"]),
    "one tag": ("one tag", {}, ["the training rows have 1 tag"]),
    "labels and lists of them": ("mixed", {}, ["some labels are lists", "--task.problem"]),
    "no room for a context": (
        "question_answering",
        {"data__max_length": "5"},
        ["none of its 5 rows", "no room for the context within 5 tokens"],
    ),
    "sounds too long": ("speech_recognition", {"task__seconds": "0.1"}, ["none of its 5 rows", "--task.seconds 0.1"]),
    "an encoder that is to talk": ("chat", {"model": "{data}/bert"}, ["--task chat needs a decoder"]),
    "a decoder that is to fill in": ("masked_lm", {"model": "{data}/llama"}, ["--task masked_lm does not go with"]),
    "a decoder that is to translate": ("seq2seq", {"model": "{data}/llama"}, ["--task seq2seq needs a model with an"]),
    "text for images": (
        "image_classification",
        {"model": "{data}/bert"},
        ["{data}/bert has no processor of images", "name a model that is made for images"],
    ),
    "images for text": ("token_classification", {"model": "{data}/vit"}, ["does not go with this model"]),
    "no mask": ("masked_lm", {"task__mask_token": ""}, ["the tokenizer has no mask token", "--task.mask_token"]),
    "messages without a template": (
        "messages",
        {"model": "{data}/no-template"},
        ["messages need a chat template; give one with --model.chat_template FILE"],
    ),
    "a folder that cannot be": ("chat", {"out": "/proc/run"}, ["--out /proc/run cannot be made"]),
}
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "multiple": ("sequence_classification", {"label": ["A", "B", "C"]}),
    "one group": ("sequence_classification", {"where": ["here"]}),
    "no time": ("sequence_classification", {"when": ["soon"]}),
    "one tag": ("token_classification", {"tags": [["O"] * 4]}),
    "mixed": ("sequence_classification", {"label": [["A"], "B"]}),
    "messages": (
        "preference",
        {
            side: [[{"role": "user", "content": "a"}, {"role": "assistant", "content": side}]]
            for side in ("chosen", "rejected")
        },
    ),
}
"""Good rows of a task with columns of their own, whose values follow one another."""


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused(case: str, data: Path, tmp_path: Path, refused: Refused) -> None:
    task, changed, told = REFUSED[case]
    if task in OWN:
        task = own_rows(data, task)
    formed = {name: value.format(data=data) if "{data}" in value else value for name, value in changed.items()}
    asked = words(data, tmp_path / "run", task, **{"data": f"{data}/{REFUSED[case][0]}.jsonl", **formed})
    said = refused([word for word in asked if case != "a folder that cannot be" or word != "--dry-run"], 2)
    for part in told:
        assert part.format(data=data) in said
    assert not list(tmp_path.rglob("*.yaml"))


def own_rows(data: Path, name: str) -> str:
    task, columns = OWN[name]
    made = [TEXT[task][1](at) for at in range(COUNT)]
    rows = [row | {key: values[at % len(values)] for key, values in columns.items()} for at, row in enumerate(made)]
    write(data / f"{name}.jsonl", rows)
    return task


@pytest.fixture(scope="module", autouse=True)
def _multiple(data: Path) -> None:
    own_rows(data, "multiple")


LEFT_OUT: dict[str, tuple[str, dict[str, Any], str]] = {
    "tags of another length": ("token_classification", {"tags": ["O"]}, "not as many tags as words"),
    "words that are none": ("token_classification", {"tokens": [1, 2, 3, 4]}, "'tokens' is no list of words"),
    "no words": ("token_classification", {"tokens": None}, "no 'tokens'"),
    "an answer elsewhere": (
        "question_answering",
        {"answers": {"text": ["a house"], "answer_start": [5]}},
        "does not stand at its answer_start in the context, but 1 time elsewhere",
    ),
    "an answer that is a text": ("question_answering", {"answers": "a house"}, "'answers' is no object of lists"),
    "an answer without a place": ("question_answering", {"answers": [{"text": "a house"}]}, "as its `answer_start`"),
    "nothing to choose by": ("multiple_choice", {"context": ""}, "no 'context' and no 'question'"),
    "one choice": ("multiple_choice", {"choices": ["a"]}, "1 choice; there is nothing to choose"),
    "no target": ("seq2seq", {"target": ""}, "no 'target'"),
    "a number for a text": ("masked_lm", {"text": 7}, "'text' is no text but int"),
    "an object for an answer": ("preference", {"rejected": {"a": 1}}, "'rejected' is no text and no list of messages"),
    "the same answer twice": ("reward", {"rejected": "good 3"}, "'chosen' and 'rejected' are the same"),
    "a margin that is a word": ("reward", {"margin": "big"}, "'margin' is no number"),
    "no image": ("image_classification", {"image": "{data}/none.png"}, "its image's file is not there"),
    "half an image": ("image_classification", {"image": "{data}/cut.png"}, "its image is broken"),
    "a text for an image": ("image_classification", {"image": "{data}/text.png"}, "cannot be read as an image"),
    "a folder for an image": ("image_classification", {"image": "{data}"}, "its image is a folder"),
    "no sound": ("audio_classification", {"audio": "{data}/none.wav"}, "its sound's file is not there"),
    "a sound of no bytes": ("speech_recognition", {"audio": "{data}/empty.wav"}, "cannot be read as a sound"),
    "a sound too long": ("speech_recognition", {"audio": "{data}/long.wav"}, "longer than --task.seconds 1"),
    "a number for a sound": ("speech_recognition", {"audio": 7}, "'audio' is no path and no list of samples"),
    "a rate of nothing": (
        "audio_classification",
        {"audio": {"array": [0.1] * 9000, "sampling_rate": 0}},
        "its sound's `sampling_rate` is no number",
    ),
    "a text that outlasts its sound": ("speech_recognition", {"text": "a book " * 50}, "fewer frames than its text"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_row_is_left_out_and_named(case: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task, changed, told = LEFT_OUT[case]
    file = changed_row(data, tmp_path, task, changed)
    own = {"task__seconds": "1"} if task == "speech_recognition" else {}
    asked = words(data, tmp_path / "run", task, data=str(file), data__holdout="0", **own)
    assert main(asked) == 0, capfd.readouterr().err
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "left out" in line]
    assert "1 row left out" in line and told in line and "line 4" in line, line


STOPS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a list for a label": ("multiple", {"label": [["A"]]}, "some labels are lists"),
    "no label": ("multiple_choice", {"label": None}, "line 4: no 'label'"),
    "a choice that is none": ("multiple_choice", {"label": 7}, "line 4: 'label' is the number"),
    "an object for a number": ("regression", {"label": {"a": 1}}, "line 4: 'label' is no number"),
    "two numbers for one": ("regression", {"label": [1, 2.5]}, "line 4: 'label' is 2 numbers where 1"),
    "a number for tags": ("token_classification", {"tags": 7}, "line 4: 'tags' is no list"),
    "a number for entities": ("entities", {"entities": 7}, "line 4: 'entities' is no list"),
    "an entity outside": ("entities", {"entities": [{"start": 0, "end": 99, "label": "X"}]}, "line 4: an entity lies"),
}


@pytest.mark.parametrize("case", STOPS)
def test_a_wrong_label_stops_everything(case: str, data: Path, tmp_path: Path, refused: Refused) -> None:
    name, changed, told = STOPS[case]
    task = OWN[name][0] if name in OWN else name
    file = changed_row(data, tmp_path, name, changed)
    problem = {"task__problem": "regression"} if task == "regression" else {}
    said = refused(words(data, tmp_path / "run", task, data=str(file), data__holdout="0", **problem), 2)
    assert told in said and "--task.labels" not in said


def changed_row(data: Path, folder: Path, task: str, changed: dict[str, Any]) -> Path:
    """The task's good rows with other values in the fourth."""
    rows = [json.loads(line) for line in (data / f"{task}.jsonl").read_text().splitlines()]
    formed = {name: value.format(data=data) if isinstance(value, str) else value for name, value in changed.items()}
    return write(folder / "rows.jsonl", [row | (formed if at == 3 else {}) for at, row in enumerate(rows)])


@pytest.mark.parametrize("task", [*TEXT, *SEEN])
def test_the_doctor_ends_with_findings_whatever_stands_in_a_column(
    task: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = (data / f"{task}.jsonl").read_text().splitlines()
    row = json.loads(good[0])
    bad = [row | {name: value} for name in row for value in ({"x": {"y": 1}}, 7, [1, [2]], None, "", True, [])]
    broken = [good[0][:-4], "[1, 2]", "7", '"', good[0].replace('"', '"\udcff', 1)]
    text = "\n".join([*good, *map(json.dumps, bad), *broken]) + "\n"
    (tmp_path / "rows.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    family = {**TEXT, **SEEN}[task][0]
    asked = ["data", "check", "--data.train", f"{tmp_path}/rows.jsonl", "--task", NAMES.get(task, task)]
    asked += ["--model", f"{data}/{family}", "--json", f"{tmp_path}/found.json"]
    asked += ["--task.mask_token", "<|user|>"] if task == "masked_lm" else []
    assert main([*asked, "--fix", f"{tmp_path}/fixed"]) == 1, "there are errors among the findings"
    assert not capfd.readouterr().err
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert {"broken", "encoding"} <= {one["check"] for one in found}
    (fixed,) = (path for path in (tmp_path / "fixed").iterdir() if path.name != "fixes.json")
    assert fixed.read_text(encoding="utf-8")


def test_the_doctor_writes_over_nothing(data: Path, tmp_path: Path, refused: Refused) -> None:
    asked = ["data", "check", "--data.train", f"{data}/chat.jsonl", "--task", "chat"]
    (tmp_path / "there").mkdir()
    assert f"--fix {tmp_path}/there is there already" in refused([*asked, "--fix", f"{tmp_path}/there"], 2)
    assert "--json /proc/found.json cannot be written" in refused([*asked, "--json", "/proc/found.json"], 1)
    assert "--fix /proc/fixed cannot be written" in refused([*asked, "--fix", "/proc/fixed"], 1)
    assert f"no folder {tmp_path}/no" in refused([*asked, "--json", f"{tmp_path}/no/found.json"], 2)
