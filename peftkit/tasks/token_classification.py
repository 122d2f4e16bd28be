"""A tag for each word: names in a text, parts of speech."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import field_validator

from peftkit.tasks.base import IGNORED, Batch, Features, LabelError, Record, Row, RowError
from peftkit.tasks.causal_lm import text_of
from peftkit.tasks.classification import Labelled, named
from peftkit.tasks.labels import by_number, is_number, label_name
from peftkit.tasks.losses import balanced, summed
from peftkit.tasks.next_token import stack
from peftkit.tasks.problems import OTHERS, listed
from peftkit.tasks.schemes import OUTSIDE, is_valid, marks_entities, scheme_of, written
from peftkit.tasks.words import Window, Words, owners, windows_of

if TYPE_CHECKING:
    from torch import Tensor


class TokenClassification(Labelled, name="token_classification"):
    """Learn a tag for each of the `tokens` (words) of a row, or the `entities` ([{start, end, label}], in characters) of a `text`.

    A word is learnt and scored once, at its first sub-word. Long rows are read in windows that overlap, and a word counts in
    the one where it has most text around it.
    """

    metrics: ClassVar[tuple[str, ...]] = ("loss", "entity_f1", "token_accuracy")
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "tokens": ("tokens", "words"),
        "tags": ("tags", "ner_tags", "pos_tags", "labels"),
        "text": ("text", "sentence"),
        "entities": ("entities", "spans"),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("tokens", "tags"), ("text", "entities"))
    given: ClassVar[tuple[str, ...]] = ("tags", "entities")
    lengths: ClassVar[tuple[str, ...]] = ("max_length", "stride")

    scheme: Literal["auto", "IOB1", "IOB2", "IOBES", "none"] = "auto"
    """How tags say where an entity begins and ends. Tags are learnt as they are written; rows that break the scheme are errors.
    auto: the one that all training rows keep, and none if there is no such one. Entities of a `text` are written in it (IOB2)."""
    label_all_subwords: bool = False
    """Learn a word's tag at each of its sub-words; it is predicted at the first all the same."""

    @field_validator("scheme", mode="before")
    @classmethod
    def _read_scheme(cls, scheme: Any) -> Any:
        return scheme.upper() if isinstance(scheme, str) and scheme.lower().startswith("iob") else scheme

    @property
    def keeps(self) -> tuple[str, ...]:
        return "tags", "predicted_tags", "correct"

    def default_metrics(self) -> tuple[str, ...]:
        plain = self.scheme == "none" and not marks_entities(self.labels or ["B-X"])
        return tuple(name for name in self.metrics if not (plain and name == "entity_f1"))

    def model_class(self) -> Any:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def model_options(self) -> dict[str, Any]:
        return {} if self.labels is None else named(self.labels)

    def fit(self, rows: Sequence[Row]) -> Self:
        read = [self._read(row) for row in rows]
        tags = [[tag for tag in own if tag is not None] for own in read if own]
        counts = Counter(tag for own in tags for tag in own)
        names = self.labels or sorted(counts, key=lambda name: (name != OUTSIDE, by_number(name)))
        if len(names) < 2:
            raise LabelError(f"the training rows have {len(names)} tag; at least two are to be told apart")
        fitted: dict[str, Any] = {"labels": names}
        if self.scheme == "auto":
            fitted["scheme"] = scheme_of(tags) or "none"
        if self.class_weights == "balanced":
            fitted["class_weights"] = balanced({name: counts[name] for name in names})
        done = self.model_copy(update=fitted)
        done.check_weights()
        return self if done == self else done

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        return self.windows(row, processor, max_length, None)[0]

    def windows(self, row: Row, processor: Any, max_length: int, stride: int | None) -> list[Features]:
        words = words_of(row)
        tags = self.tags_of(row, words)
        ids = [IGNORED] * len(words) if tags is None else [self._number(tag) for tag in tags]
        found = windows_of(words, processor, max_length, stride)
        owner = owners(found)
        if not owner:
            raise RowError("no token in its words")
        return [self._features(number, window, owner, ids) for number, window in enumerate(found)]

    def tags_of(self, row: Row, words: Words) -> list[str | None] | None:
        """One tag a word, None where a word has none; None for all of a row that is to be predicted."""
        if is_unlabelled(row):
            return None
        tags = self._tags(row, words)
        if len(tags) != len(words):
            raise RowError("not as many tags as words")
        scheme = "none" if self.scheme == "auto" else self.scheme
        if scheme != "none" and not is_valid([tag for tag in tags if tag is not None], scheme):
            raise LabelError(f"'tags' break {scheme} (--task.scheme none takes them as they are)")
        return tags

    def _tags(self, row: Row, words: Words) -> list[str | None]:
        if row.get("tokens") is not None:
            return [self._name(tag) for tag in listed_in(row, "tags")]
        spans = [entity_of(entity, words.text) for entity in listed_in(row, "entities")]
        entities = sorted((*words.of(start, end), kind) for start, end, kind in spans)
        if any(one[1] > other[0] for one, other in pairwise(entities)):
            raise RowError("its entities overlap")
        scheme = self.scheme if self.scheme in ("IOB1", "IOBES") else "IOB2"
        return list(written(entities, len(words), scheme))

    def _read(self, row: Row) -> list[str | None]:
        """A training row's tags, none if it is not usable: what is wrong with it is said where it is encoded."""
        try:
            return self._tags(row, words_of(row)) if not is_unlabelled(row) else []
        except RowError:
            return []

    def _name(self, tag: Any) -> str | None:
        """A tag's name, from its number where the names are no numbers; None for one that is not known."""
        names = self.labels or []
        if tag == IGNORED:
            return None
        by_place = isinstance(tag, int) and 0 <= tag < len(names) and not any(map(is_number, names))
        return names[tag] if by_place else label_name(tag)

    def _number(self, tag: str | None) -> int:
        names = self.labels or []
        if tag is not None and tag not in names:
            raise LabelError(f"one of its tags is none of {listed(names)} ({OTHERS})")
        return IGNORED if tag is None else names.index(tag)

    def _features(self, number: int, window: Window, owner: dict[int, int], ids: Sequence[int]) -> Features:
        """Labels of the words that count in this window, and at their first sub-words their numbers, from 1 on."""
        own = [word if word is not None and owner.get(word) == number else None for word in window.words]
        first = [word is not None and word not in own[:at] for at, word in enumerate(own)]
        labelled = [
            word is not None and (begins or self.label_all_subwords) for word, begins in zip(own, first, strict=True)
        ]
        return {
            **window.features,
            "labels": [
                ids[word] if word is not None and has else IGNORED for word, has in zip(own, labelled, strict=True)
            ],
            "words": [word + 1 if word is not None and begins else 0 for word, begins in zip(own, first, strict=True)],
        }

    def unlabelled(self, row: Row) -> Row:
        return {name: value for name, value in row.items() if name not in self.given} | {"unlabelled": True}

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        return stack(features, processor)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {name: value for name, value in batch.items() if name not in ("labels", "words")}

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        given = self.class_weights if isinstance(self.class_weights, dict) else None
        weights = None if given is None else [given.get(name, 1.0) for name in self.labels or []]
        return summed(outputs.logits, batch["labels"], self.label_smoothing, weights, self.focal)

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        rows = zip(outputs.logits.detach(), batch["labels"], batch["words"], strict=True)
        return [self._record(*row) for row in rows]

    def _record(self, logits: Tensor, labels: Tensor, words: Tensor) -> Record:
        names = self.labels or [str(number) for number in range(logits.shape[-1])]
        likeliest, first = logits.argmax(-1), words > 0
        return {
            "loss": float(summed(logits, labels)),
            "targets": int((labels != IGNORED).sum()),
            "correct": int((likeliest == labels).sum()),
            "words": (words[first] - 1).tolist(),
            "predicted_tags": [names[number] for number in likeliest[first].tolist()],
        }

    def judge(self, row: Row, records: Sequence[Record], processor: Any) -> Record:
        """A tag for each word, from the windows in which they count; a word without a token is outside."""
        words = words_of(row)
        names = self.labels or [OUTSIDE]
        said = [OUTSIDE if OUTSIDE in names else names[0]] * len(words)
        for record in records:
            for word, tag in zip(record["words"], record["predicted_tags"], strict=True):
                said[word] = tag
        sums = {name: sum(record[name] for record in records) for name in ("loss", "targets", "correct")}
        tags = self.tags_of(row, words)
        if tags is None:
            return {**sums, "tags": None, "predicted_tags": said}
        known = [at for at, tag in enumerate(tags) if tag is not None]
        return {**sums, "tags": [tags[at] for at in known], "predicted_tags": [said[at] for at in known]}

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        names = self.labels or []
        found: list[tuple[str, bool]] = []
        for token, label in zip(features["input_ids"], features["labels"], strict=True):
            text = processor.decode([token])
            found += [(text, False)] if label == IGNORED else [(f"{text}/{names[label]}", True)]
        return found


def is_unlabelled(row: Row) -> bool:
    """Whether a row is to be predicted; one that lacks its tags is one to be mended."""
    if row.get("unlabelled"):
        return True
    if row.get("tags" if row.get("tokens") is not None else "entities") is None:
        raise LabelError("no 'tags'" if row.get("tokens") is not None else "no 'entities'")
    return False


def listed_in(row: Row, column: str) -> Sequence[Any]:
    """The column's list. LabelError for anything else."""
    values = row.get(column)
    if not isinstance(values, (list, tuple)):
        raise LabelError(f"{column!r} is no list")
    return values


def words_of(row: Row) -> Words:
    """The row's words as they are given, or as they are found in its text."""
    tokens = row.get("tokens")
    if tokens is None and row.get("text") is None:
        raise RowError("no 'tokens'" if "tokens" in row else "no 'text'")
    if tokens is None:
        return Words.found(text_of(row, "text"))
    if not isinstance(tokens, (list, tuple)) or not all(isinstance(token, str) for token in tokens):
        raise RowError("'tokens' is no list of words")
    if not tokens:
        raise RowError("no 'tokens'")
    return Words.given(tokens)


def entity_of(entity: Any, text: str) -> tuple[int, int, str]:
    """Start, end and type of an entity, from an object or a list of the three."""
    if isinstance(entity, dict):
        entity = (entity.get("start"), entity.get("end"), entity.get("label", entity.get("type")))
    if not isinstance(entity, (list, tuple)) or len(entity) != 3:
        raise LabelError("an entity is no {start, end, label}")
    start, end, kind = entity
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end <= len(text):
        raise LabelError("an entity lies outside its text")
    if not isinstance(kind, str) or not kind:
        raise LabelError("an entity has no label")
    return start, end, kind
