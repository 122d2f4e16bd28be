"""Words from their surroundings: an encoder goes on learning a domain's texts (Devlin et al., 2018, https://arxiv.org/abs/1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from peftkit.errors import DataError
from peftkit.tasks.base import IGNORED, Batch, Features, Record, Row, RowError, Task
from peftkit.tasks.causal_lm import text_of
from peftkit.tasks.next_token import stack
from peftkit.tasks.positions import Wanted, token_losses, token_records

if TYPE_CHECKING:
    from torch import Tensor

MASKED, REPLACED = 0.8, 0.1
"""Of the tokens to be told, these shares are masked and replaced by any other; the rest stays as it is."""
SPECIAL = -1
"""The word of a token that stands in no text."""


class MaskedLM(Task, name="masked_lm"):
    """Learn to tell masked words of plain text (column `text`): domain adaptation of encoders like BERT.

    What is masked is drawn anew each time that a text is learnt; in evaluations it is always the same. A long text is
    read in windows.
    """

    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "token_accuracy")
    columns: ClassVar[dict[str, tuple[str, ...]]] = {"text": ("text", "content", "document", "body")}
    predicts: ClassVar[bool] = False
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("text",),)
    texts: ClassVar[tuple[str, ...]] = ("text",)
    lengths: ClassVar[tuple[str, ...]] = ("max_length", "stride")

    late: ClassVar[tuple[str, ...]] = ("mask_share",)

    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that are to be told, at least one a window."""
    whole_word: bool = False
    """Mask all tokens of a word together."""
    mask_token: str | None = None
    """Token that stands for a masked one; left out: the tokenizer's own."""

    @property
    def varies(self) -> str:
        return "masks other tokens each time"

    def model_class(self) -> Any:
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        return self.windows(row, processor, max_length, None)[0]

    def windows(self, row: Row, processor: Any, max_length: int, stride: int | None) -> list[Features]:
        if not processor.is_fast:
            raise DataError(f"--task {self.name} needs a tokenizer that tells each token's word (a fast one)")
        self.mask_id(processor)
        room = max_length - processor.num_special_tokens_to_add()
        encoded = processor(
            text_of(row, "text"),
            truncation=True,
            max_length=max_length,
            stride=max(0, min(stride or 0, room // 2)),
            return_overflowing_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        made = [_window(encoded, at) for at in range(len(encoded["input_ids"]))]
        made = [window for window in made if max(window["words"], default=SPECIAL) > SPECIAL]
        if not made:
            raise RowError("no token in its text")
        # Until `vary` draws others: how many there are is always the same.
        return [{**window, "labels": self.vary(window, processor, Random(0))["labels"]} for window in made]

    def vary(self, features: Features, processor: Any, draw: Random) -> Features:
        """The window with other tokens masked, which are its labels."""
        mask, ids = self.mask_id(processor), list(features["input_ids"])
        labels = [IGNORED] * len(ids)
        for position in self._chosen(features["words"], draw):
            labels[position] = ids[position]
            chance = draw.random()
            if chance < MASKED:
                ids[position] = mask
            elif chance < MASKED + REPLACED:
                ids[position] = draw.randrange(len(processor))
        return {**features, "input_ids": ids, "labels": labels, "varied": 1}

    def _chosen(self, words: Sequence[int], draw: Random) -> list[int]:
        """The positions to be told: a share of those that stand in the text, by words if whole ones are asked for."""
        usable = [position for position, word in enumerate(words) if word != SPECIAL]
        count = max(1, round(self.mask_share * len(usable)))
        if not self.whole_word:
            return sorted(draw.sample(usable, count))
        groups = [list(group) for _, group in groupby(usable, key=lambda position: words[position])]
        draw.shuffle(groups)
        chosen: list[int] = []
        for group in groups:
            if len(chosen) < count:
                chosen += group
        return sorted(chosen)

    def mask_id(self, processor: Any) -> int:
        """The token that stands for a masked one; DataError if there is none."""
        token = self.mask_token or processor.mask_token
        number = None if token is None else processor.get_vocab().get(token)
        if number is None:
            what = "no mask token" if token is None else f"no token {token!r}"
            raise DataError(
                f"the tokenizer has {what}, which --task {self.name} needs; take an encoder (BERT), or name one of its tokens"
                " with --task.mask_token"
            )
        return int(number)

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        drawn = [row if "varied" in row else self.vary(row, processor, Random(0)) for row in features]
        return stack([{name: row[name] for name in row if name not in ("words", "varied")} for row in drawn], processor)

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def wanted(self, batch: Batch) -> Wanted:
        return Wanted(batch["labels"])

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return token_losses(outputs, batch["labels"]).sum()

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        return token_records(outputs, batch["labels"])

    def judge(self, row: Row, records: Sequence[Record], processor: Any) -> Record:
        return {name: sum(record[name] for record in records) for name in ("loss", "targets", "correct")}

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        marked = zip(features["input_ids"], features["labels"], strict=True)
        runs = groupby(marked, key=lambda position: position[1] != IGNORED)
        return [(processor.decode([token for token, _ in run]), target) for target, run in runs]


def _window(encoded: Any, at: int) -> Features:
    words = [SPECIAL if word is None else word for word in encoded.word_ids(at)]
    types = {"token_type_ids": encoded["token_type_ids"][at]} if "token_type_ids" in encoded else {}
    return {"input_ids": encoded["input_ids"][at], **types, "words": words}
