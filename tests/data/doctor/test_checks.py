"""Corners of single checks: what looks like a defect and is none, and how remedies meet."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from peftkit.config.sections import Data
from peftkit.data.doctor import chosen, examine, mend, open_case, write_fixed
from peftkit.data.doctor.checks.names import misspelt
from peftkit.data.doctor.checks.tags import rewrite
from peftkit.data.doctor.edit import edited
from peftkit.data.doctor.similar import near, shingle
from peftkit.data.doctor.write import file_names
from peftkit.errors import ConfigError, DataError
from peftkit.tasks import Task
from tests.data.doctor.plant import columns_task

CLASSES = Task.model_validate("sequence_classification")


@pytest.mark.parametrize(
    ("counts", "near"),
    [
        ({"class 1": 90, "class 2": 3}, {}),
        ({"typical": 50, "atypical": 40}, {}),
        ({"cat": 90, "car": 1}, {}),
        ({"positive": 90, "Positive ": 80, "postive": 2}, {"Positive ": "positive", "postive": "positive"}),
        ({"not_spam": 9, "not spam": 3, "Not-Spam": 1}, {"not spam": "not_spam", "Not-Spam": "not_spam"}),
    ],
)
def test_nearly_equal_names(counts, near):
    assert misspelt(Counter(counts)) == near


def test_given_names_are_right_however_rare():
    assert misspelt(Counter({"POS": 99, "Pos": 1}), given=["Pos"]) == {"POS": "Pos"}


@pytest.mark.parametrize(
    ("scheme", "tags", "written"),
    [
        ("iob2", "O I-A I-A B-A I-B", "O B-A I-A B-A B-B"),
        ("iob1", "I-A I-A B-A O B-B", "I-A I-A B-A O I-B"),
        ("iobes", "B-A I-A O I-B E-B S-A", "B-A E-A O B-B E-B S-A"),
        ("bilou", "B-A L-A U-A B-B", "B-A L-A U-A U-B"),
    ],
)
def test_tags_are_written_again(scheme, tags, written):
    assert rewrite(tags.split(), scheme) == written.split()
    assert rewrite(written.split(), scheme) == written.split()


def test_answers_stay_on_their_words_when_the_context_changes():
    row = {"context": "  die Ta\u0308ler und Wa\u0308lder", "answers": {"text": ["Wa\u0308lder"], "answer_start": [17]}}
    from peftkit.data.doctor.checks.unicode import normalised

    new = {**row, **edited(row, lambda text: normalised(text).strip())}
    (text,), (start,) = new["answers"]["text"], new["answers"]["answer_start"]
    assert (text, new["context"][start : start + len(text)]) == ("Wälder", "Wälder")


def test_other_numbers_make_another_row():
    text = "John has {} apples and gives two of them to Mary, who has none; how many has he then?"
    five, again, seven = (shingle({"text": text.format(number)}) for number in ("5", "5, yes 5"[:1], "7"))
    assert five and again and seven
    assert (near(five, again), near(five, seven)) == (True, False)


def test_questions_about_one_context_are_no_near_duplicates(tmp_path):
    context = "The river rises in the hills, crosses the plain and reaches the sea after two hundred miles." * 5
    rows = [{"text": context, "text_pair": one, "label": one[0]} for one in ("Where does it rise?", "How long is it?")]
    assert findings(tmp_path, rows) == []


def test_what_most_rows_say_is_kept_and_of_a_tie_nothing(tmp_path):
    rows = [{"text": "a b", "label": label} for label in "xxy"] + [{"text": "c d", "label": label} for label in "xy"]
    case = open_case(Data(train=write(tmp_path, [*rows, {"text": "e", "label": "y"}])), CLASSES)
    after, _ = mend(case, chosen(["conflicts"]))
    assert list(after.sheets[0].numbers) == [1, 2, 6]


def test_remedies_that_make_room_for_each_other_meet_in_the_end(tmp_path):
    rows = [
        {"text": "fine film", "label": "pos "},
        {"text": " fine film\u0007", "label": "pos"},
        {"text": "no", "label": "neg"},
    ]
    case = open_case(Data(train=write(tmp_path, [*rows, {"text": "yes", "label": "pos"}])), CLASSES)
    after, changes = mend(case, chosen())
    assert list(after.sheets[0].raw) == [
        {"text": "fine film", "label": "pos"},
        rows[2],
        {"text": "yes", "label": "pos"},
    ]
    assert {one.remedy for one in changes} == {"fill", "trim", "normalise", "deduplicate"}


def test_nothing_is_written_if_no_row_is_left(tmp_path):
    case = open_case(Data(train=write(tmp_path, [{"text": "", "label": "x"}] * 2)), CLASSES)
    with pytest.raises(DataError, match="would leave no row of train"):
        mend(case, chosen())


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_fixed_files_have_the_format_that_was_read_and_their_other_columns(suffix, tmp_path):
    separator = {".csv": ",", ".tsv": "\t"}.get(suffix)
    rows = [{"review": f"row {at}, fine", "label": "xy"[at % 2], "id": str(at)} for at in (1, 2, 3, 3)]
    path = tmp_path / f"a{suffix}"
    if separator:
        lines = [["review", "id", "label"], *([f'"{row["review"]}"', row["id"], row["label"]] for row in rows)]
        path.write_text("\n".join(separator.join(line) for line in lines))
    else:
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    case = open_case(Data(train=str(path)), CLASSES)
    after, changes = mend(case, chosen(["duplicates"]))
    written = write_fixed(tmp_path / "out", case, after, changes)
    again = open_case(Data(train=str(tmp_path / "out" / path.name)), CLASSES)
    assert (written[0].name, list(again.sheets[0].raw)) == (path.name, rows[:3])
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        write_fixed(tmp_path / "out", case, after, changes)


def test_two_sources_of_one_name_get_two_files(tmp_path):
    (tmp_path / "b").mkdir()
    paths = [write(folder, [{"text": "a b", "label": "x"}]) for folder in (tmp_path, tmp_path / "b")]
    case = open_case(Data(train=paths[0], test=paths[1]), CLASSES)
    assert file_names(case.sheets) == ["train-rows.jsonl", "test-rows.jsonl"]


def test_other_formats_that_cannot_be_read_are_a_finding(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": ')
    (one,) = examine(open_case(Data(train=str(tmp_path / "a.json")), CLASSES), chosen(["broken"]))
    assert (one.severity, one.sheet.name) == ("error", "a.json")
    with pytest.raises(DataError, match="there is no file"):
        open_case(Data(train=str(tmp_path / "b.json")), CLASSES)


def test_a_check_that_there_is_not_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"--only duplicate: no check has that name \(did you mean 'duplicates'"):
        chosen(["duplicate"])


def test_every_source_of_a_mixture_is_checked_with_its_own_columns(tmp_path):
    rows = [{"review": f"row {at} fine", "stars": "xy"[at % 2]} for at in (1, 2, 2)]
    path = write(tmp_path, rows)
    (tmp_path / "b").mkdir()
    other = write(tmp_path / "b", [{"text": "good film", "label": "x"}])
    data = {"mixture": [{"path": path, "columns": {"text": "review", "label": "stars"}}, other]}
    found = examine(open_case(Data.model_validate(data), CLASSES), chosen())
    assert [(one.check, one.sheet.source, one.numbers) for one in found] == [("duplicates", path, [3])]


def test_a_column_of_objects_is_no_wrong_type(tmp_path):
    rows = [{"translation": {"en": f"house {at}", "de": f"Haus {at}"}} for at in range(5)]
    case = open_case(Data(train=write(tmp_path, [*rows, {"translation": 3}])), columns_task(("translation",)))
    assert [(one.check, one.numbers) for one in examine(case, chosen(["types"]))] == [("types", [6])]


def findings(folder: Path, rows: list[dict[str, str]]) -> list[str]:
    return [one.check for one in examine(open_case(Data(train=write(folder, rows)), CLASSES), chosen())]


def write(folder: Path, rows: list[dict[str, str]]) -> str:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "rows.jsonl")
