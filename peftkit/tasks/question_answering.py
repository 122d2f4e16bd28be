"""Extractive question answering: which words of a context answer a question, if any do (SQuAD, versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import PositiveInt

from peftkit.errors import DataError
from peftkit.tasks.base import IGNORED, Batch, Features, Record, Row, RowError, Task
from peftkit.tasks.causal_lm import text_of
from peftkit.tasks.classification import tuned_by
from peftkit.tasks.next_token import stack

if TYPE_CHECKING:
    from torch import Tensor

STRIDE = 128
NOT_READ = ("labels", "offsets", "nowhere")
"""Features that the model does not get."""
Answer = tuple[str, int]
"""A text, and the character of the context that it starts at."""


class QuestionAnswering(Task, name="question_answering"):
    """Learn where the answer to a `question` stands in its `context`: `answers` with `text` and `answer_start`, or none.

    A long context is read in windows. Where a window has no answer in it, start and end point to its first token (CLS).
    The first answer is learnt, all are right.
    """

    metrics: ClassVar[tuple[str, ...]] = ("loss", "exact_match", "qa_f1")
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "question": ("question", "query"),
        "context": ("context", "passage", "paragraph", "document"),
        "answers": ("answers", "answer"),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("question", "context", "answers"),)
    given: ClassVar[tuple[str, ...]] = ("answers",)
    lengths: ClassVar[tuple[str, ...]] = ("max_length", "stride")

    n_best: PositiveInt = 20
    """Likeliest spans of each window that are kept."""
    max_answer_length: PositiveInt = 30
    """Longest answer in tokens."""
    no_answer_threshold: float | Literal["tune"] | None = None
    """No answer is given where its score is more than this above the best span's; tune: the best F1 on the validation rows;
    left out: 0 if some training rows have no answer, else every question is answered."""

    def model_class(self) -> Any:
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    def fit(self, rows: Sequence[Row]) -> Self:
        if self.no_answer_threshold is not None or not any(map(_is_unanswerable, rows)):
            return self
        return self.model_copy(update={"no_answer_threshold": 0.0})

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        return self.windows(row, processor, max_length, None)[0]

    def windows(self, row: Row, processor: Any, max_length: int, stride: int | None) -> list[Features]:
        if not processor.is_fast:
            raise DataError(f"--task {self.name} needs a tokenizer that tells each token's characters (a fast one)")
        question, context = text_of(row, "question").strip(), text_of(row, "context")
        span = _first_span(answers_of(row), context)
        encoded = processor(
            question,
            context,
            truncation="only_second",
            max_length=max_length,
            stride=_shared(question, processor, max_length, STRIDE if stride is None else stride),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        windows = [_window(encoded, at, span, processor) for at in range(len(encoded["input_ids"]))]
        if span and all(window["labels"] == [window["nowhere"]] * 2 for window in windows):
            raise RowError("its answer is in no window: it is longer than what two windows share (--data.stride)")
        return windows

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        return stack(features, processor)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {name: value for name, value in batch.items() if name not in NOT_READ}

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"][:, 0] != IGNORED).sum())

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return _losses(outputs, batch).sum()

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        losses = _losses(outputs, batch).tolist()
        known = (batch["labels"][:, 0] != IGNORED).tolist()
        starts, ends = outputs.start_logits.detach().float(), outputs.end_logits.detach().float()
        nowhere = batch["nowhere"][:, None]
        none = (starts.gather(1, nowhere) + ends.gather(1, nowhere))[:, 0].tolist()
        spans = [self._spans(*row) for row in zip(starts, ends, batch["offsets"], strict=True)]
        names = ("loss", "targets", "none", "spans")
        rows = zip(losses, map(int, known), none, spans, strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def judge(self, row: Row, records: Sequence[Record], processor: Any) -> Record:
        spans = _best_texts(row["context"], [span for record in records for span in record["spans"]])[: self.n_best]
        none = min(record["none"] for record in records)
        best = spans[0] if spans else {"text": "", "score": none}
        record = {
            "loss": sum(record["loss"] for record in records),
            "targets": sum(record["targets"] for record in records),
            "answers": _texts(row),
            "no_answer": none - best["score"],
            "spans": spans,
        }
        return {**record, "answer": "" if self._refuses(record["no_answer"]) else best["text"]}

    def tune(self, records: Sequence[Record]) -> Self:
        if self.no_answer_threshold != "tune":
            return self
        pairs = [(record["no_answer"], *_worth(record)) for record in records if record["answers"] is not None]
        return self.model_copy(update={"no_answer_threshold": best_threshold(pairs)}) if pairs else self

    def conflicts(self, run: Any) -> Iterator[str]:
        yield from super().conflicts(run)
        if self.no_answer_threshold == "tune":
            yield from tuned_by("no_answer_threshold", run)

    def unlabelled(self, row: Row) -> Row:
        return {**row, "answers": []}

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        start, end = features["labels"]
        ids = features["input_ids"]
        answer = "(no answer)" if start == features["nowhere"] else processor.decode(ids[start : end + 1]).strip()
        return [(processor.decode(ids), False), (" -> ", False), (answer, True)]

    def _refuses(self, no_answer: float) -> bool:
        threshold = 0.0 if self.no_answer_threshold == "tune" else self.no_answer_threshold
        return threshold is not None and no_answer > threshold

    def _spans(self, starts: Tensor, ends: Tensor, offsets: Tensor) -> list[list[float]]:
        """The likeliest spans of a window: first and last+1 character, and the sum of the two logits."""
        import torch

        inside = (offsets[:, 1] > offsets[:, 0]).nonzero()[:, 0]  # only the context's tokens have characters
        scores = starts[inside][:, None] + ends[inside][None, :]
        allowed = torch.ones_like(scores, dtype=torch.bool).triu().tril(self.max_answer_length - 1)
        best = scores.masked_fill(~allowed, -torch.inf).flatten().topk(min(self.n_best, int(allowed.sum())))
        found = []
        for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            start, end = divmod(place, len(inside))
            found.append([int(offsets[inside[start], 0]), int(offsets[inside[end], 1]), score])
        return found


def answers_of(row: Row) -> list[Answer]:
    """The row's answers, in SQuAD's shape or as a list of objects; none if it has none. RowError for anything else."""
    answers = row.get("answers")
    if answers is None:
        raise RowError("no 'answers' (for a question without an answer, an empty list)")
    if isinstance(answers, dict):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise RowError("'answers' has no two lists `text` and `answer_start` of one length")
        return [_answer(text, start) for text, start in zip(texts, starts, strict=True)]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise RowError("'answers' is no object of lists, and no list of objects, with `text` and `answer_start`")
    return [_answer(answer.get("text"), answer.get("answer_start")) for answer in answers]


def _is_unanswerable(row: Row) -> bool:
    """Whether the row says that there is no answer; one that cannot be read says nothing, and is reported where it is encoded."""
    try:
        return not answers_of(row)
    except RowError:
        return False


def _answer(text: Any, start: Any) -> Answer:
    if not isinstance(text, str) or not text.strip() or isinstance(start, bool) or not isinstance(start, int):
        raise RowError("an answer has no `text`, or no number as its `answer_start`")
    return text, start


def _texts(row: Row) -> list[str] | None:
    """All true answers' texts; None if the row does not say."""
    return [text for text, _ in answers_of(row)] if row.get("answers") is not None else None


def _first_span(answers: Sequence[Answer], context: str) -> tuple[int, int] | None:
    """First and last+1 character of the first answer, without blanks around it; RowError if any stands elsewhere."""
    for text, start in answers:
        if start < 0 or context[start : start + len(text)] != text:
            others = context.count(text)
            where = f"but {others} time{'s' * (others > 1)} elsewhere" if others else "nor anywhere else"
            raise RowError(f"an answer does not stand at its answer_start in the context, {where}")
    if not answers:
        return None
    text, start = answers[0]
    first = start + len(text) - len(text.lstrip())
    return first, first + len(text.strip())


def _shared(question: str, processor: Any, max_length: int, stride: int) -> int:
    """Tokens that two windows share: as many as asked for, but at most half of what the question leaves to the context."""
    taken: int = len(processor(question, add_special_tokens=False, verbose=False)["input_ids"])
    room: int = max_length - taken - processor.num_special_tokens_to_add(pair=True)
    if room < 2:
        raise RowError(f"its question leaves no room for the context within {max_length} tokens")
    return min(stride, room // 2)


def _window(encoded: Any, at: int, span: tuple[int, int] | None, processor: Any) -> Features:
    ids, sequence = encoded["input_ids"][at], encoded.sequence_ids(at)
    offsets = [
        list(pair) if part == 1 else [0, 0] for pair, part in zip(encoded["offset_mapping"][at], sequence, strict=True)
    ]
    nowhere = ids.index(processor.cls_token_id) if processor.cls_token_id in ids else 0
    features = {"input_ids": ids, "offsets": offsets, "nowhere": nowhere}
    if "token_type_ids" in encoded:
        features["token_type_ids"] = encoded["token_type_ids"][at]
    return {**features, "labels": _labels(offsets, span, nowhere)}


def _labels(offsets: Sequence[Sequence[int]], span: tuple[int, int] | None, nowhere: int) -> list[int]:
    """First and last token of the answer; the token that stands for none if the window does not have all of it."""
    context = [number for number, (left, right) in enumerate(offsets) if right > left]
    if span is None or not context or offsets[context[0]][0] > span[0] or offsets[context[-1]][1] < span[1]:
        return [nowhere, nowhere]
    inside = [number for number in context if offsets[number][0] < span[1] and span[0] < offsets[number][1]]
    return [inside[0], inside[-1]] if inside else [nowhere, nowhere]


def _losses(outputs: Any, batch: Batch) -> Tensor:
    """Each window's loss: the mean of its start's and its end's, in fp32; zero where there is no target."""
    import torch
    from torch.nn.functional import cross_entropy

    # Padding is no place to choose from: a window's loss must not know how long its neighbours are.
    padding = batch["attention_mask"] == 0
    both = [
        cross_entropy(logits.float().masked_fill(padding, -torch.inf), labels, ignore_index=IGNORED, reduction="none")
        for logits, labels in zip((outputs.start_logits, outputs.end_logits), batch["labels"].T, strict=True)
    ]
    return (both[0] + both[1]) / 2


def _best_texts(context: str, spans: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """The texts of spans of all windows, the best first, each with the best of its scores."""
    best: dict[str, float] = {}
    for start, end, score in sorted(spans, key=lambda span: (-span[2], span[0], span[1])):
        text = context[int(start) : int(end)].strip()
        if text:
            best.setdefault(text, score)
    return [{"text": text, "score": score} for text, score in best.items()]


def _worth(record: Record) -> tuple[float, float]:
    """The F1 of answering with the best span, and of giving no answer."""
    from peftkit.metrics.answers import AnswerF1

    text = record["spans"][0]["text"] if record["spans"] else ""
    answers = record["answers"] or [""]
    pair = AnswerF1().of_pair
    return max(pair(answer, text) for answer in answers), float(not record["answers"])


def best_threshold(pairs: Sequence[tuple[float, float, float]]) -> float:
    """The threshold of the highest sum of F1, from each row's score for no answer and its F1 with and without an answer.

    Between two scores any threshold does the same, so the middle is taken; of several as good, the one nearest to 0.
    """
    ordered = sorted(pairs)
    total = sum(without for _, _, without in ordered)  # with a threshold below all scores nothing is answered
    found = [(-total, ordered[0][0] - 1)]
    for at, (score, answered, without) in enumerate(ordered):
        total += answered - without
        following = ordered[at + 1][0] if at + 1 < len(ordered) else score + 2
        if following > score:
            found.append((-total, (score + following) / 2))
    best = min(round(value, 9) for value, _ in found)
    return min((middle for value, middle in found if round(value, 9) == best), key=abs)
