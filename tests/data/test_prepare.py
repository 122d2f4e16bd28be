"""Rows to features: splits, what is cut, left out or refused, and a cache that any number of processes share."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from peftkit.config.sections import Data, Model
from peftkit.data.fingerprint import key, processor_digest
from peftkit.data.prepare import prepare
from peftkit.data.sealed import build_once
from peftkit.data.sources import Table
from peftkit.data.split import hold_out
from peftkit.errors import DataError
from peftkit.models.processor import load_processor
from peftkit.tasks import CausalLM, Chat, SequenceClassification
from peftkit.tasks.image_classification import ImageClassification
from tests.tiny import save_image, save_tiny, tokenizer


def put(folder: Path, name: str, rows: list[dict]) -> str:
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    return str(folder / name)


def texts(count: int, label: str | None = None) -> list[dict]:
    return [{"text": f"text number {number}"} | ({"label": label} if label else {}) for number in range(count)]


@pytest.fixture
def data(tmp_path):
    """Data settings with a cache of their own."""
    return lambda **words: Data(cache=tmp_path / "cache", **words)


def prepared(data: Data, task=None, context=None, seed=42):
    return prepare(data, task or CausalLM(), tokenizer(), context, seed)


def decoded(store) -> list[str]:
    return [tokenizer().decode(store[row]["input_ids"], skip_special_tokens=True) for row in range(len(store))]


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_given_splits_are_kept_in_their_order(tmp_path, data):
    train, validation, test = (
        put(tmp_path, name, texts(n)) for name, n in (("a.jsonl", 5), ("b.jsonl", 2), ("c.jsonl", 3))
    )
    found = prepared(data(train=train, validation=validation, test=test))
    assert decoded(found.train) == [row["text"] for row in texts(5)]
    assert (len(found.validation), len(found.test)) == (2, 3)


def test_without_validation_rows_a_share_is_held_out(tmp_path, data):
    train = put(tmp_path, "a.jsonl", texts(40))
    found = prepared(data(train=train, holdout=0.1))
    assert (len(found.train), len(found.validation), found.test) == (36, 4, None)
    assert sorted(decoded(found.train) + decoded(found.validation)) == sorted(row["text"] for row in texts(40))
    assert decoded(prepared(data(train=train, holdout=0.1), seed=1).validation) != decoded(found.validation)
    assert prepared(data(train=train, holdout=0)).validation is None


@pytest.mark.parametrize(("rows", "share", "held"), [(2, 0.05, 1), (2, 0.99, 1), (100, 0.05, 5), (7, 0.5, 4)])
def test_at_least_one_row_is_held_out_and_one_is_left(rows, share, held):
    table = Table("a", texts(rows), range(1, rows + 1))
    found = hold_out(table, {"validation": share}, Data(), "label", seed=3)
    assert len(found["validation"]) == held
    assert sorted(found["train"] + found["validation"]) == list(range(rows))


def test_one_row_cannot_be_split(tmp_path, data):
    with pytest.raises(DataError, match=r"a\.jsonl has one row.*--data\.validation, or --data\.holdout 0"):
        prepared(data(train=put(tmp_path, "a.jsonl", texts(1))))


def test_limit_bounds_every_split(tmp_path, data):
    train, validation = put(tmp_path, "a.jsonl", texts(9)), put(tmp_path, "b.jsonl", texts(9))
    found = prepared(data(train=train, validation=validation, limit=4))
    assert (len(found.train), len(found.validation)) == (4, 4)


def test_what_is_cut_and_left_out_is_counted_with_its_lines(tmp_path, data):
    long = {"prompt": "short", "response": "very long " * 20}
    lost = {"prompt": "very long " * 20, "response": "short"}
    good = {"prompt": "a", "response": "b"}
    rows = [good, long, lost, {"prompt": "a"}, good, *[lost] * 6]
    found = prepared(data(train=put(tmp_path, "a.jsonl", rows), holdout=0, max_length=40), Chat())
    report = found.report.splits["train"]
    assert (report.rows, report.kept, report.cut) == (11, 3, 1)
    assert report.kept == len(found.train)
    assert (report.tokens, report.targets) == (sum(found.train.lengths), found.train.targets)
    assert found.report.lines()[1:] == [
        "train: 1 of them cut to 40 tokens (--data.max_length, or the model's own limit)",
        "train: 7 rows left out (no target: no answer begins within the first 40 tokens): lines 3, 6, 7, 8, 9, ...",
        "train: 1 row left out (no 'response'): line 4",
    ]


def test_half_a_character_is_no_text(tmp_path, data):
    good = {"prompt": "a", "response": "b"}
    train = put(tmp_path, "a.jsonl", [good, {"prompt": "a", "response": "b \ud83d"}, good])
    (told,) = [line for line in prepared(data(train=train, holdout=0), Chat()).report.lines() if "left out" in line]
    assert told.startswith("train: 1 row left out ('response' holds half a character")
    assert told.endswith("line 2")


def test_a_row_that_fits_exactly_is_not_cut(tmp_path, data):
    length = len(CausalLM().encode({"text": "exactly so"}, tokenizer(), 99)["input_ids"])
    train = put(tmp_path, "a.jsonl", [{"text": "exactly so"}])
    assert prepared(data(train=train, holdout=0), context=length).report.splits["train"].cut == 0
    assert prepared(data(train=train, holdout=0), context=length - 1).report.splits["train"].cut == 1


def test_a_split_without_a_usable_row_is_an_error_with_its_reasons(tmp_path, data):
    good, bad = put(tmp_path, "a.jsonl", texts(3)), put(tmp_path, "b.jsonl", [{"text": ""}, {"text": 3}])
    with pytest.raises(
        DataError,
        match=r"b\.jsonl: none of its 2 validation rows can be learnt from\n.*no 'text'\): line 1\n.*no text but int\): line 2",
    ):
        prepared(data(train=good, validation=bad))
    assert not list((tmp_path / "cache" / "data").glob("*/*.npy"))


def test_labels_are_read_once_and_kept_with_the_task(tmp_path, data):
    train = put(tmp_path, "a.jsonl", texts(9, "b") + texts(1, "a"))
    for _ in range(2):
        assert prepared(data(train=train), SequenceClassification()).task.labels == ["a", "b"]


def test_a_wrong_label_stops_everything_and_names_its_lines(tmp_path, data):
    train = put(tmp_path, "a.jsonl", texts(3, "b") + texts(3, "a"))
    other = put(tmp_path, "b.jsonl", texts(1, "a") + texts(7, "secret"))
    with pytest.raises(DataError, match=r"b\.jsonl line 2, 3, 4, 5, 6 and 2 more: 'label' is none of a, b ") as raised:
        prepared(data(train=train, validation=other), SequenceClassification())
    assert "secret" not in str(raised.value)


def test_one_label_in_all_rows_is_an_error(tmp_path, data):
    with pytest.raises(DataError, match=r"a\.jsonl: the training rows have 1 label"):
        prepared(data(train=put(tmp_path, "a.jsonl", texts(3, "b"))), SequenceClassification())


def test_the_embedded_rows_are_for_prompts_and_responses_alone(data):
    with pytest.raises(DataError, match=r"--task causal_lm needs --data\.train, rows with `text`"):
        prepared(data())
    found = prepared(data(limit=30), Chat())
    assert len(found.train) > 20
    assert "Python 3." in found.report.lines()[0]


def test_the_second_time_everything_is_read(tmp_path, data):
    train = put(tmp_path, "a.jsonl", texts(20))
    first = prepared(data(train=train))
    files = files_of(tmp_path / "cache")
    second = prepared(data(train=train))
    assert files_of(tmp_path / "cache") == files
    assert decoded(second.train) == decoded(first.train)
    assert second.report == first.report


def test_with_its_labels_filled_in_the_task_finds_the_same_rows(tmp_path, data):
    """What a resumed run and an export ask for; and a damaged folder is built again under either name."""
    settings = data(train=put(tmp_path, "a.jsonl", texts(9, "b") + texts(3, "a")))
    task = SequenceClassification(class_weights="balanced")
    first = prepared(settings, task)
    second = prepared(settings, first.task)
    assert first.task != task
    assert second.folder.resolve() == first.folder
    (first.folder / "prepared.json").write_text("{}")
    assert prepared(settings, first.task).task == prepared(settings, task).task == first.task


def test_images_that_a_table_names_are_read_anew_where_they_have_changed(tmp_path, data):
    """The table's bytes are the same."""
    pytest.importorskip("PIL")
    names = [save_image(tmp_path / f"{row}.png", row) for row in range(4)]
    rows = [{"image": name, "label": "ab"[row % 2]} for row, name in enumerate(names)]
    settings = data(train=put(tmp_path, "a.jsonl", rows), holdout=0)
    processor = load_processor(Model(), str(save_tiny(tmp_path / "vit", "vit")), "image")

    def pixels() -> list[int]:
        found = prepare(settings, ImageClassification(), processor, None, 1)
        return [int(found.train[row]["image"].sum()) for row in range(len(found.train))]

    first = pixels()
    assert pixels() == first
    save_image(Path(names[2]), 7)
    second = pixels()
    assert [one == other for one, other in zip(first, second, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize(
    "name", ["train/input_ids.npy", "validation/labels.starts.npy", "prepared.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_cache_is_built_again(tmp_path, data, name, damage):
    settings = data(train=put(tmp_path, "a.jsonl", texts(20)))
    expected = decoded(prepared(settings).train)
    (path,) = (tmp_path / "cache" / "data").glob(f"*/{name}")
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 255]))
    assert decoded(prepared(settings).train) == expected
    assert path.read_bytes() == content


def test_everything_that_changes_the_rows_changes_the_key(tmp_path):
    train, other = put(tmp_path, "a.jsonl", texts(9)), put(tmp_path, "b.jsonl", texts(8))
    plain, template = tokenizer(), tokenizer()
    template.chat_template = "{{ messages }}"
    base = {"data": Data(train=train), "task": CausalLM(), "processor": plain, "max_length": 9, "seed": 1}
    changes = [
        {},
        {"data": Data(train=other)},
        {"data": Data(train=train, limit=3)},
        {"data": Data(train=train, columns={"text": "text"})},
        {"data": Data(train=train, holdout=0.5)},
        {"data": Data(train=train, validation=other)},
        {"task": Chat()},
        {"processor": template},
        {"max_length": 8},
        {"seed": 2},
    ]
    assert len({key(**{**base, **change}) for change in changes}) == len(changes)
    given = {"data": Data(train=train, validation=other)}
    assert key(**{**base, **given}) == key(**{**base, **given, "seed": 2})


def test_what_a_tokenizer_was_last_asked_does_not_change_its_digest():
    used = tokenizer()
    used("some text", truncation=True, max_length=3, padding="max_length")
    assert processor_digest(used) == processor_digest(tokenizer())


def in_processes(count, work, *words):
    with multiprocessing.get_context("fork").Pool(count) as pool:
        return pool.starmap(work, [words] * count, chunksize=1)


def build_slowly(folder: Path, log: Path) -> str:
    def build(into: Path) -> None:
        with log.open("a") as file:
            file.write("built\n")
        (into / "rows").write_text("content")

    build_once(folder, build)
    return (folder / "rows").read_text()


def test_of_many_processes_one_builds(tmp_path):
    assert in_processes(8, build_slowly, tmp_path / "cache" / "rows", tmp_path / "log") == ["content"] * 8
    assert (tmp_path / "log").read_text() == "built\n"


def rows_and_files(settings: Data) -> tuple[list[str], dict[str, tuple[int, int]]]:
    return decoded(prepared(settings).train), files_of(settings.cache)


def test_processes_that_start_at_once_share_one_cache(tmp_path, data):
    found = in_processes(4, rows_and_files, data(train=put(tmp_path, "a.jsonl", texts(50))))
    assert all(one == found[0] for one in found)
    assert len(found[0][0]) == 48


def test_a_failed_build_leaves_nothing_that_looks_built(tmp_path):
    def fail(into: Path) -> None:
        (into / "rows").write_text("half")
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        build_once(tmp_path / "rows", fail)
    assert not (tmp_path / "rows").exists()
    build_once(tmp_path / "rows", lambda into: (into / "rows").write_text("whole"))
    assert (tmp_path / "rows" / "rows").read_text() == "whole"


def test_a_cache_that_cannot_be_written_names_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"--data\.cache: .*cannot be written"):
        build_once(tmp_path / "file" / "rows", lambda into: None)
