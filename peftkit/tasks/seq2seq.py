"""A text for a text, by models that read with an encoder and write with a decoder: translation, summaries, answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt

from peftkit.errors import ConfigError
from peftkit.tasks.base import IGNORED, Batch, Features, Record, Row, RowError, Task
from peftkit.tasks.causal_lm import ended
from peftkit.tasks.losses import summed
from peftkit.tasks.next_token import stack
from peftkit.tasks.positions import Wanted, token_logits, token_losses, token_records

if TYPE_CHECKING:
    from torch import Tensor

STARTED_BY_THE_LAST = ("mbart", "plbart", "fsmt")
"""Models whose decoder starts with the target's own last token, which names its language (or ends it)."""
PLACE = "."
"""What stands in the place of a target that is to be written."""


class Seq2Seq(Task, name="seq2seq"):
    """Learn to write a `target` for a `source` (translations, summaries, answers), with encoder-decoders: T5, BART, Marian.

    Rows of translations may have one column `translation` with a text for each language: `source_lang` and `target_lang`
    say which is which. With a `context` beside the source the model reads "question: SOURCE context: CONTEXT". A target
    may be a list of texts that are all right: the first is learnt, and what is written is held against all of them.
    """

    metrics: ClassVar[tuple[str, ...]] = ("loss", "token_accuracy")
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "source": ("source", "input", "document", "article", "dialogue", "text", "question", "src"),
        "target": ("target", "output", "summary", "highlights", "answers", "answer", "tgt"),
        "context": ("context",),
        "translation": ("translation",),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("source", "target"), ("translation",))
    given: ClassVar[tuple[str, ...]] = ("target",)
    texts: ClassVar[tuple[str, ...]] = ("source",)
    generates: ClassVar[bool] = True

    late: ClassVar[tuple[str, ...]] = ("label_smoothing",)

    prefix: str = ""
    """What stands in front of every source: T5 was taught with "translate English to German: " or "summarize: "."""
    source_lang: str | None = None
    """Language of the source: a key of `translation`, and for many-language models (M2M, NLLB, mBART) their tokenizer's word."""
    target_lang: str | None = None
    """Language of the target, likewise."""
    max_target_length: PositiveInt = 128
    """Longest target in tokens (also bounded by the model's own limit); what is longer loses its end."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0
    """This share of a target token's weight goes to all tokens alike; 0.1 is usual."""
    decoder_start: int | Literal["last"] | None = None
    """Token that the decoder starts with, or the target's last one; left out: the model's own."""

    def bind(self, config: Any) -> Self:
        """With what the model's configuration says of its decoder."""
        limit = _positions(config)
        length = min(self.max_target_length, limit or self.max_target_length)
        start: int | str | None = self.decoder_start
        if start is None:
            start = (
                "last" if config.model_type in STARTED_BY_THE_LAST else getattr(config, "decoder_start_token_id", None)
            )
        if start is None and not getattr(config, "is_encoder_decoder", True):
            raise ConfigError(
                f"--task {self.name} needs a model with an encoder and a decoder (T5, BART, Marian), and this one"
                f" ({config.model_type}) has not both; decoders learn to answer with --task chat"
            )
        if start is None:
            raise ConfigError(
                "the model's config.json names no decoder_start_token_id; give its number with --task.decoder_start"
            )
        if (length, start) == (self.max_target_length, self.decoder_start):
            return self
        return self.model_copy(update={"max_target_length": length, "decoder_start": start})

    @property
    def keeps(self) -> tuple[str, ...]:
        return "reference", "generated", "correct"

    def model_class(self) -> Any:
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        self._name_languages(processor)
        source, references = self.source_of(row), self.references_of(row)
        ids = processor(source, truncation=True, max_length=max_length, verbose=False)["input_ids"]
        if not ids:
            raise RowError("no token in its source")
        if not references:
            raise RowError("no 'target'")
        labels = self.target_ids(references[0], processor)
        features = {"input_ids": ids, "labels": labels}
        if self.decoder_start is not None:
            start = labels[-1] if self.decoder_start == "last" else self.decoder_start
            features["decoder_input_ids"] = [start, *labels[:-1]]
        return features

    def loses(self, row: Row, features: Features, processor: Any, max_length: int) -> bool:
        """Whether the target has lost its end."""
        if len(features["labels"]) < self.max_target_length:
            return False
        more = self.model_copy(update={"max_target_length": self.max_target_length + 1})
        return len(more.target_ids(self.references_of(row)[0], processor)) > self.max_target_length

    def source_of(self, row: Row) -> str:
        """What the encoder reads."""
        found = self._in(row, self.source_lang) if row.get("translation") is not None else row.get("source")
        if not isinstance(found, str) or not found:
            raise RowError("no 'source'" if not found else f"'source' is no text but {type(found).__name__}")
        context = row.get("context")
        return self.prefix + (f"question: {found} context: {context}" if context else found)

    def references_of(self, row: Row) -> list[str]:
        """The texts that are right, the one to learn first; none if the row has no target."""
        found = self._in(row, self.target_lang) if row.get("translation") is not None else row.get("target")
        if isinstance(found, dict):  # SQuAD's {"text": [..], "answer_start": [..]}
            found = found.get("text")
        texts = found if isinstance(found, list) else [found]
        if any(text is not None and not isinstance(text, str) for text in texts):
            raise RowError(f"'target' is no text but {type(found).__name__}")
        return [text for text in texts if text]

    def target_ids(self, text: str, processor: Any) -> list[int]:
        """The labels of a target: with its end, which stays where the text is cut."""
        ids = ended_once(processor(text_target=text, verbose=False)["input_ids"], processor)
        special = set(processor.all_special_ids)
        behind = next((at for at, token in enumerate(reversed(ids)) if token not in special), len(ids))
        if len(ids) > self.max_target_length > behind:
            ids = ids[: self.max_target_length - behind] + ids[len(ids) - behind :]
        return ids[: self.max_target_length]

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        if "decoder_input_ids" not in features[0]:
            raise ConfigError(
                "--task seq2seq has not met its model: call task.bind(config), or give --task.decoder_start"
            )
        return stack(features, processor)

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def wanted(self, batch: Batch) -> Wanted:
        return Wanted(batch["labels"], logits=self.label_smoothing > 0)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        labels = batch["labels"]
        if not self.label_smoothing:
            return token_losses(outputs, labels).sum()
        return summed(token_logits(outputs, labels), labels[labels != IGNORED], self.label_smoothing)

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        return token_records(outputs, batch["labels"])

    def prompts(self, batch: Batch, processor: Any) -> dict[str, Any]:
        asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return {**asked, **self._first_token(processor)}

    def judge(self, row: Row, records: Sequence[Record], processor: Any) -> Record:
        record = records[0]
        if "generated_ids" not in record:
            return record
        references = self.references_of(row)
        text = processor.decode(record["generated_ids"], skip_special_tokens=True).strip()
        reference: Any = references if len(references) != 1 else references[0]
        return {**record, "generated": text, "reference": reference or None, "source": self.source_of(row)}

    def unlabelled(self, row: Row) -> Row:
        """With a target that nobody reads."""
        if isinstance(row.get("translation"), dict):
            return {**row, "translation": {**row["translation"], (self.target_lang or "").split("_")[0]: PLACE}}
        return {**row, "target": PLACE}

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        read, learnt = (processor.decode(features[name]) for name in ("input_ids", "labels"))
        return [(read, False), (" -> ", False), (learnt, True)]

    def _in(self, row: Row, language: str | None) -> Any:
        """The row's text in a language."""
        texts = row["translation"]
        if not isinstance(texts, dict):
            raise RowError(f"'translation' is no object with a text for each language but {type(texts).__name__}")
        if language is None:
            raise RowError(
                f"its 'translation' has {', '.join(map(str, texts))}: say with --task.source_lang and --task.target_lang"
                " what is translated into what"
            )
        return texts.get(language, texts.get(language.split("_")[0]))

    def _name_languages(self, processor: Any) -> None:
        """Tokenizers of many languages write the language's own token where it belongs."""
        for name, language in (("src_lang", self.source_lang), ("tgt_lang", self.target_lang)):
            if language and hasattr(processor, name) and getattr(processor, name) != language:
                setattr(processor, name, language)

    def _first_token(self, processor: Any) -> dict[str, int]:
        """Where the tokenizer puts the language's token in a target, generation has to begin with it."""
        if not (self.target_lang and hasattr(processor, "tgt_lang")):
            return {}
        self._name_languages(processor)
        empty = processor(text_target="", verbose=False)["input_ids"]
        named = [token for token in empty if token not in (processor.eos_token_id, processor.bos_token_id)]
        if not named:
            return {}
        return {"decoder_start_token_id" if empty[-1] == named[0] else "forced_bos_token_id": named[0]}


def ended_once(ids: list[int], processor: Any) -> list[int]:
    """With the end token, unless the tokenizer has put it among the target's last ones (before a language's token)."""
    return ids if processor.eos_token_id in ids[-2:] else ended(ids, processor.eos_token_id)


def _positions(config: Any) -> int | None:
    """The decoder's longest text; None where it has no limit."""
    decoder = getattr(config, "decoder", None)
    text = decoder if hasattr(decoder, "model_type") else config
    names = ("max_target_positions", "max_decoder_position_embeddings", "max_position_embeddings")
    return next((value for name in names if (value := getattr(text, name, None))), None)
