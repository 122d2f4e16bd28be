"""Spans: where an answer stands among the tokens of its windows, transformers' loss, and the best spans by brute force."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from peftkit.metrics.answers import AnswerF1
from peftkit.tasks import QuestionAnswering
from peftkit.tasks.base import RowError
from peftkit.tasks.question_answering import best_threshold
from tests.tiny import tiny, tokenizer

CONTEXT = "The quick brown fox jumps over the lazy dog, while the small cat sleeps in the warm sun by the river Seine."


def row_of(answer: str = "the small cat", context: str = CONTEXT, **more: Any) -> dict[str, Any]:
    answers = (
        {"text": [answer], "answer_start": [context.index(answer)]} if answer else {"text": [], "answer_start": []}
    )
    return {"question": "Who sleeps?", "context": context, "answers": answers, **more}


def windows(row: dict[str, Any], max_length: int = 128, stride: int | None = None) -> list[dict[str, Any]]:
    return QuestionAnswering().windows(row, tokenizer(), max_length, stride)


@pytest.mark.parametrize("answer", ["the small cat", "The quick", "Seine.", "x jum", " dog,"])
def test_the_labels_are_the_answers_tokens(answer: str) -> None:
    (features,) = windows(row_of(answer))
    start, end = features["labels"]
    (first, _), (_, last) = features["offsets"][start], features["offsets"][end]
    assert answer.strip() in CONTEXT[first:last]
    inner = CONTEXT[features["offsets"][start][1] : features["offsets"][end][0]] if end > start else ""
    assert len(inner) < len(answer), "one token less on either side would not hold it"


def test_both_shapes_of_answers_are_the_same_row() -> None:
    one = row_of()
    listed = {**one, "answers": [{"text": "the small cat", "answer_start": CONTEXT.index("the small cat")}]}
    assert windows(one) == windows(listed)


def test_a_long_context_is_read_in_windows_that_share_stride_tokens() -> None:
    found = windows(row_of(), max_length=30, stride=6)
    question = len(tokenizer()("Who sleeps?")["input_ids"])
    assert len(found) > 3
    context = tokenizer()(CONTEXT)["input_ids"]
    read = found[0]["input_ids"][question:]
    for window in found[1:]:
        assert read[-6:] == window["input_ids"][question:][:6]
        read += window["input_ids"][question + 6 :]
    assert read == context
    with_answer = [window for window in found if window["labels"] != [0, 0]]
    assert 1 <= len(with_answer) < len(found), "windows without the answer point to the first token"
    for window in with_answer:
        left, right = (window["offsets"][window["labels"][0]][0], window["offsets"][window["labels"][1]][1])
        assert CONTEXT[left:right].strip() == "the small cat"


def test_no_answer_points_to_the_token_that_stands_for_none() -> None:
    words = tokenizer()
    words.add_special_tokens({"cls_token": "<|user|>"})
    row = {**row_of(""), "question": "Who <|user|> sleeps?"}
    (features,) = QuestionAnswering().windows(row, words, 128, None)
    assert features["labels"] == [features["nowhere"]] * 2
    assert features["input_ids"][features["nowhere"]] == words.cls_token_id
    assert features["nowhere"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": ["the small cat"], "answer_start": [3]}}, "but 1 time elsewhere"),
        ({"answers": {"text": ["a dog"], "answer_start": [3]}}, "nor anywhere else"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "two lists"),
        ({"answers": "cat"}, "no object of lists"),
        ({"answers": [{"text": "cat"}]}, "no `text`, or no number"),
        ({"answers": None}, "no 'answers'"),
        ({"context": ""}, "no 'context'"),
        ({"question": None}, "no 'question'"),
        ({"question": "Who " * 60}, "leaves no room"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        windows({**row_of(), **change}, max_length=64)


def test_an_answer_that_no_window_holds_is_not_taken_for_none() -> None:
    with pytest.raises(RowError, match="is in no window"):
        windows(row_of(CONTEXT[5:100]), max_length=20, stride=2)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_the_loss_is_that_of_transformers_for_each_window_alone(family: str) -> None:
    task, model = QuestionAnswering(), tiny(family, head="question_answering")
    features = [*windows(row_of(), 30, 6), *windows(row_of("")), *windows(row_of("Seine."))]
    batch = task.collate(features, tokenizer())
    outputs = model(**task.inputs(batch))
    expected = []
    for window in features:
        start, end = (torch.tensor([position]) for position in window["labels"])
        ids = torch.tensor([window["input_ids"]])
        expected.append(model(input_ids=ids, start_positions=start, end_positions=end).loss)
    assert task.targets(batch) == len(features)
    assert_close(task.loss(outputs, batch), sum(expected))
    assert_close([record["loss"] for record in task.score(outputs, batch)], [loss.item() for loss in expected])
    blank = task.blank(batch)
    assert (task.targets(blank), float(task.loss(outputs, blank).detach())) == (0, 0.0)


def brute_force(features: dict[str, Any], starts: list[float], ends: list[float], longest: int) -> dict[str, float]:
    """Every allowed span's text and its score."""
    best: dict[str, float] = {}
    context = [at for at, (left, right) in enumerate(features["offsets"]) if right > left]
    for first in context:
        for last in context:
            if first <= last < first + longest:
                text = CONTEXT[features["offsets"][first][0] : features["offsets"][last][1]].strip()
                best[text] = max(best.get(text, -1e9), starts[first] + ends[last])
    return best


def test_the_rows_answer_is_the_best_span_of_all_its_windows() -> None:
    task, words = QuestionAnswering(n_best=5, max_answer_length=4), tokenizer()
    features = windows(row_of(), 30, 6)
    batch = task.collate(features, words)
    torch.manual_seed(0)
    starts, ends = (torch.randn(batch["input_ids"].shape) for _ in range(2))
    judged = task.judge(row_of(), task.score(SimpleNamespace(start_logits=starts, end_logits=ends), batch), words)
    best: dict[str, float] = {}
    for window, start, end in zip(features, starts.tolist(), ends.tolist(), strict=True):
        for text, score in brute_force(window, start, end, 4).items():
            best[text] = max(best.get(text, -1e9), score)
    ranked = sorted(best.items(), key=lambda pair: -pair[1])[:5]
    assert [span["text"] for span in judged["spans"]] == [text for text, _ in ranked]
    assert_close([span["score"] for span in judged["spans"]], [score for _, score in ranked])
    none = min(start[0] + end[0] for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
    assert_close(judged["no_answer"], none - ranked[0][1])
    assert (judged["answer"], judged["answers"], judged["targets"]) == (ranked[0][0], ["the small cat"], len(features))


@pytest.mark.parametrize(("threshold", "answer"), [(None, "fox"), (0.0, ""), (3.0, "fox"), (1.9, "")])
def test_an_answer_is_refused_above_the_threshold(threshold: float | None, answer: str) -> None:
    start = CONTEXT.index("fox")
    record = {"loss": 1.0, "targets": 1, "none": 5.0, "spans": [[start, start + 3, 3.0]]}
    assert QuestionAnswering(no_answer_threshold=threshold).judge(row_of(), [record], tokenizer())["answer"] == answer


def test_rows_without_an_answer_among_the_training_rows_allow_to_give_none() -> None:
    assert QuestionAnswering().fit([row_of(), row_of()]).no_answer_threshold is None
    assert QuestionAnswering().fit([row_of(), row_of("")]).no_answer_threshold == 0.0
    assert QuestionAnswering(no_answer_threshold="tune").fit([row_of("")]).no_answer_threshold == "tune"


def test_the_tuned_threshold_gives_the_best_f1_there_is() -> None:
    task, words = QuestionAnswering(no_answer_threshold="tune"), tokenizer()
    rows, records = [], []
    numbers = torch.Generator().manual_seed(0)
    for number in range(40):
        rows.append(row_of("fox" if number % 3 else ""))
        score = float(torch.randn((), generator=numbers)) * 2 + (1.0 if number % 3 else -1.0)
        start = CONTEXT.index("fox jumps" if number % 2 else "fox")
        records.append(
            {"loss": 0.0, "targets": 1, "none": 0.0, "spans": [[start, start + (9 if number % 2 else 3), score]]}
        )

    def f1(chosen: QuestionAnswering) -> float:
        judged = [chosen.judge(row, [record], words) for row, record in zip(rows, records, strict=True)]
        return AnswerF1().compute(judged)["qa_f1"]

    tuned = task.tune([task.judge(row, [record], words) for row, record in zip(rows, records, strict=True)])
    tried = [f1(QuestionAnswering(no_answer_threshold=at / 50)) for at in range(-400, 400)]
    assert f1(tuned) == pytest.approx(max(tried))
    assert max(tried) > f1(QuestionAnswering(no_answer_threshold=0.0))
    assert QuestionAnswering().tune([]) == QuestionAnswering()


def test_where_all_thresholds_are_as_good_the_nearest_to_zero_is_taken() -> None:
    assert best_threshold([(-4.0, 1.0, 0.0), (2.0, 0.0, 1.0)]) == -1.0
    assert best_threshold([(3.0, 1.0, 0.0)]) == 4.0
    assert best_threshold([(3.0, 0.0, 1.0)]) == 2.0


def test_a_question_without_known_answers_is_answered_too() -> None:
    row = QuestionAnswering().unlabelled({"question": "Who?", "context": CONTEXT})
    assert QuestionAnswering().windows(row, tokenizer(), 128, None)[0]["labels"] == [0, 0]


def test_the_pieces_show_the_answer() -> None:
    (features,) = windows(row_of())
    assert QuestionAnswering().pieces(features, tokenizer())[-1] == ("the small cat", True)
    assert QuestionAnswering().pieces(windows(row_of(""))[0], tokenizer())[-1] == ("(no answer)", True)
