"""Defects planted in clean data of every kind of task are found: all of them, and nothing else."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peftkit.config.sections import Data
from peftkit.data.doctor import Case, Reading, chosen, examine, mend, open_case, write_fixed
from peftkit.tasks import Task
from tests import tiny
from tests.data.doctor import plant
from tests.data.doctor.plant import ENGLISH, GERMAN, Garden, columns_task, one_word, sentence

NEAR = ("near_duplicates", "near_leakage")
QUESTIONS = Task.model_validate("question_answering")
TASKS: dict[str, tuple[Callable[..., Any], str, Task]] = {
    "classification": (plant.classification, "text", Task.model_validate("sequence_classification")),
    "several labels": (plant.several_labels, "text", Task.model_validate("sequence_classification")),
    "regression": (plant.regression, "text", Task.model_validate("sequence_classification")),
    "tagging": (plant.tagging, "", Task.model_validate("token_classification")),
    "questions": (plant.question, "question", QUESTIONS),
    "translation": (plant.translation, "source", Task.model_validate("seq2seq")),
    "chat": (plant.chat, "", Task.model_validate("chat")),
    "preference": (plant.preference, "prompt", Task.model_validate("preference")),
}
LONG_WORD = re.compile("|".join(word for word in ENGLISH if len(word) == 4).encode())
Found = dict[tuple[str, str], set[int]]


@pytest.fixture(params=TASKS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_nothing_is_found_in_clean_rows(kind: str, tmp_path: Path) -> None:
    assert found(opened(garden(kind), TASKS[kind][2], tmp_path)) == {}


def test_every_planted_defect_is_found_and_nothing_else(kind: str, tmp_path: Path) -> None:
    planted = spoilt(kind)
    held(planted, found(opened(planted, TASKS[kind][2], tmp_path)))


def test_what_is_mended_is_not_found_again(kind: str, tmp_path: Path) -> None:
    planted = spoilt(kind)
    case = opened(planted, TASKS[kind][2], tmp_path)
    able = [check for check in chosen() if check.remedies]
    after, changes = mend(case, able, asked=[check.name for check in able])
    assert {one.check for one in changes} >= {check for check, _ in planted.expected} - {"balance"}
    write_fixed(tmp_path / "fixed", case, after, changes)
    data = Data(train=str(tmp_path / "fixed/train.jsonl"), test=str(tmp_path / "fixed/test.jsonl"))
    again = {check for check, _ in found(open_case(data, TASKS[kind][2]))}
    assert again <= {"balance"}


def test_rows_of_the_test_split_are_never_left_out_for_leakage(tmp_path: Path) -> None:
    planted = garden("classification")
    planted.leak("leakage")
    case = opened(planted, TASKS["classification"][2], tmp_path)
    after, changes = mend(case, chosen(["leakage"]))
    assert {(one.split, one.numbers) for one in changes} == {("train", tuple(range(401, 406)))}
    assert (after.of("train")[0].raw, after.of("test")[0].raw) == (planted.rows["train"][:400], planted.rows["test"])


@pytest.mark.parametrize("task", ["chat", "causal_lm"])
def test_defects_that_a_tokenizer_shows(task: str, tmp_path: Path) -> None:
    words = words_tokenizer()
    planted = Garden(plant.chat if task == "chat" else lambda draw: {"text": sentence(draw, 20)}, "text")
    if task == "chat":
        planted.spoil(
            "spelt_tokens", lambda row: row["messages"][0].update(content="</s> " + row["messages"][0]["content"])
        )
        planted.spoil("no_targets", lambda row: row["messages"][0].update(content=sentence(planted.draw, 80)))
        planted.expected["truncated", "train"] |= planted.expected["no_targets", "train"]
    else:
        planted.change_text("double_bos", lambda text: "<s> " + text)
        planted.change_text("truncated", lambda text: sentence(planted.draw, 90))
        planted.change_text(
            "unknown_tokens", lambda text: sentence(planted.draw, 20, ["wrzlbrmft", "quuxify", *ENGLISH[:2]])
        )
    model = [check for check in chosen() if check.model]
    case = opened(planted, Task.model_validate(task), tmp_path, Reading(words, 70))
    held(planted, found(case, model))
    after, _ = mend(case, model, asked=[check.name for check in model])
    assert found(after, model) == {}


def test_answers_that_the_limit_cuts_off(tmp_path: Path) -> None:
    planted = garden("questions")
    planted.spoil("spans_cut", lambda row: shifted(row, sentence(planted.draw, 60)))
    reading = Reading(words_tokenizer(), 64)
    in_one_piece = columns_task(("context", "question", "answers"))
    held(planted, found(opened(planted, in_one_piece, tmp_path, reading), chosen(["spans_cut"])))
    # Read in windows it is in one of them, unless it is longer than any.
    assert (
        found(open_case(Data(**planted.write(tmp_path / "planted")), QUESTIONS, reading), chosen(["spans_cut"])) == {}
    )
    longer = garden("questions")
    longer.spoil("spans_cut", lambda row: answered_by(row, sentence(longer.draw, 80)))
    held(longer, found(opened(longer, QUESTIONS, tmp_path / "longer", reading), chosen(["spans_cut"])))


def test_a_text_without_an_end_is_found(tmp_path: Path) -> None:
    endless = words_tokenizer(eos_token=None)
    planted = Garden(lambda draw: {"text": sentence(draw, 20)}, "text", count=40)
    case = opened(planted, Task.model_validate("causal_lm"), tmp_path, Reading(endless, 70))
    assert found(case, chosen(["no_eos"])) == {
        ("no_eos", "train"): set(range(1, 41)),
        ("no_eos", "test"): set(range(1, 11)),
    }


def test_what_the_task_refuses_is_found(tmp_path: Path) -> None:
    planted = garden("chat")
    planted.spoil("refused", lambda row: row["messages"].pop(1) and row.update(messages=row["messages"][:1]))
    case = opened(planted, TASKS["chat"][2], tmp_path, Reading(tiny.tokenizer(), 1024))
    held(planted, found(case, chosen(["refused"])))


def garden(kind: str) -> Garden:
    make, text, _ = TASKS[kind]
    return Garden(make, text)


def spoilt(kind: str) -> Garden:
    """A garden of this kind with all defects that its rows can have."""
    planted = garden(kind)
    planted.replace_line("broken", lambda line: line[: len(line) // 2])
    planted.replace_line("encoding", lambda line: LONG_WORD.sub("caf\u00e9".encode("cp1252"), line, count=1))
    planted.spoil("empty", lambda row: row.update(dict.fromkeys(row)))
    planted.repeat("duplicates")
    planted.leak("leakage")
    if planted.text:
        spoil_texts(planted, planted.text)
    SPOILERS[kind](planted)
    return planted


def spoil_texts(planted: Garden, text: str) -> None:
    """What can be wrong with any column of text."""
    draw = planted.draw
    needed = "chosen" if text == "prompt" else text  # a preference may be one of whole conversations
    planted.spoil("missing", lambda row: row.update({needed: "  "}))
    planted.spoil("types", lambda row: row.update({text: draw.random()}))
    planted.change_text("mojibake", lambda value: f"{value} café".encode().decode("cp1252"))
    planted.change_text("unicode", lambda value: unicodedata.normalize("NFD", f"{value} café"))
    planted.change_text("unicode", lambda value: f"\ufeff{value}\u0007")
    planted.change_text("lost_characters", lambda value: f"{value} caf\ufffd")
    planted.change_text("blanks", lambda value: f" {value}\n")
    planted.change_text("lengths", lambda value: sentence(draw, 1500))
    planted.change_text("languages", lambda value: sentence(draw, 24, GERMAN))
    planted.repeat("near_duplicates", lambda row: one_word(row, text), count=20)
    planted.leak("near_leakage", lambda row: one_word(row, text), count=20)


def spoil_classes(planted: Garden) -> None:
    draw = planted.draw
    planted.spoil("missing", lambda row: row.update(label=None))
    planted.spoil("labels", lambda row: row.update(label="sideways"), split="test")
    planted.spoil("label_names", lambda row: row.update(label=draw.choice([" Positive", "NEGATIVE", "neutrall"])))
    planted.repeat(
        "conflicts", lambda row: row.update(label="positive" if row["label"] != "positive" else "negative"), both=True
    )
    planted.spoil("balance", lambda row: row.update(label="mixed feelings"))
    planted.expected["balance", "train"] |= planted.expected["label_names", "train"]


def spoil_several(planted: Garden) -> None:
    planted.spoil("types", lambda row: row.update(label=[{"name": "sport"}]))
    planted.spoil("labels", lambda row: row["label"].append("cooking"), split="test")
    planted.spoil("label_names", lambda row: row["label"].append("Sport "))
    planted.expected["balance", "train"] |= planted.expected["label_names", "train"]


def spoil_numbers(planted: Garden) -> None:
    planted.spoil("types", lambda row: row.update(label="five"))
    planted.spoil("missing", lambda row: row.update(label=float("nan")))


def spoil_tags(planted: Garden) -> None:
    planted.spoil("tags", lambda row: row["tags"].__setitem__(slice(20, 22), ["O", "I-PER"]))
    planted.spoil("tags", lambda row: row["tags"].__setitem__(slice(19, 22), ["B-LOC", "I-ORG", "O"]))
    planted.spoil("unequal_lists", lambda row: row["tags"].pop())
    planted.spoil("missing", lambda row: row.update(tags=[]))
    planted.spoil("label_names", lambda row: row["tags"].__setitem__(slice(20, 22), ["B-per", "I-per"]))
    planted.spoil("labels", lambda row: row["tags"].__setitem__(22, "B-EVENT"), split="test")
    planted.repeat("conflicts", lambda row: row["tags"].__setitem__(23, "B-LOC"), both=True)


def spoil_answers(planted: Garden) -> None:
    planted.spoil("spans", lambda row: row["answers"].update(answer_start=[row["answers"]["answer_start"][0] + 2]))
    planted.spoil("spans", lambda row: row["answers"].update(text=["nowhere in it"]))
    planted.spoil("types", lambda row: row["answers"].update(answer_start=["3"]))
    planted.repeat("conflicts", lambda row: row["answers"].update(text=[], answer_start=[]), both=True)


def spoil_turns(planted: Garden) -> None:
    def first(row: dict[str, Any]) -> dict[str, Any]:
        return row["messages"][0]  # type: ignore[no-any-return]

    planted.spoil("roles", lambda row: row["messages"].reverse())
    planted.spoil("roles", lambda row: first(row).update(role="referee"))
    planted.spoil("roles", lambda row: first(row).update(content=""))
    planted.spoil("roles", lambda row: row["messages"].append({"role": "system", "content": "be brief"}))
    planted.spoil("roles", lambda row: row["messages"].append({"role": "user", "content": "and then?"}))
    planted.spoil("types", lambda row: row.update(messages=sentence(planted.draw)))
    planted.spoil("missing", lambda row: row.update(messages=[], also=1))
    planted.expected["empty", "train"] |= planted.expected.pop(("missing", "train"))  # its only column
    planted.spoil("unicode", lambda row: first(row).update(content="\ufeff" + first(row)["content"]))
    planted.repeat("near_duplicates", lambda row: one_word(row["messages"][0], "content"), count=20)


def spoil_pairs(planted: Garden) -> None:
    def swap(row: dict[str, Any]) -> None:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]

    planted.repeat("swapped", swap, both=True)


SPOILERS: dict[str, Callable[[Garden], None]] = {
    "classification": spoil_classes,
    "several labels": spoil_several,
    "regression": spoil_numbers,
    "tagging": spoil_tags,
    "questions": spoil_answers,
    "translation": lambda planted: None,
    "chat": spoil_turns,
    "preference": spoil_pairs,
}


def opened(planted: Garden, task: Task, folder: Path, reading: Reading | None = None) -> Case:
    return open_case(Data(**planted.write(folder / "planted")), task, reading)


def found(case: Case, checks: Any = None) -> Found:
    """Row numbers by check and split."""
    numbers: Found = defaultdict(set)
    for one in examine(case, chosen() if checks is None else checks):
        numbers[one.check, one.sheet.split] |= set(one.numbers)
    return dict(numbers)


def held(planted: Garden, numbers: Found) -> None:
    """Recall and precision of every class: 1 where the defect is exact, 0.95 where it is nearness."""
    short = {}
    for key in {*planted.expected, *numbers}:
        wanted, got = planted.expected.get(key, set()), numbers.get(key, set())
        recall = len(wanted & got) / len(wanted) if wanted else 1.0
        precision = len(wanted & got) / len(got) if got else 1.0
        if min(recall, precision) < (0.95 if key[0] in NEAR else 1.0):
            short[key] = {"recall": recall, "precision": precision, "missed": wanted - got, "false": got - wanted}
    assert short == {}


def answered_by(row: dict[str, Any], text: str) -> None:
    row.update(context=text, answers={"text": [text], "answer_start": [0]})


def shifted(row: dict[str, Any], before: str) -> None:
    row["context"] = f"{before} {row['context']}"
    row["answers"]["answer_start"] = [row["answers"]["answer_start"][0] + len(before) + 1]


def words_tokenizer(**words: Any) -> PreTrainedTokenizerFast:
    """A token a word, unknown words being unknown; it begins every text with <s>."""
    from tokenizers import processors

    vocabulary = {word: number for number, word in enumerate([*tiny.TOKENS, *dict.fromkeys(ENGLISH)])}
    made = Tokenizer(models.WordLevel(vocabulary, tiny.NAMED["unk_token"]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **{**tiny.NAMED, **words})
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    return tokenizer
