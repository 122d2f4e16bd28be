"""What all tasks share that learn the next token: padding, the shifted loss, a record a row.

The logits at position t - 1 predict the label at position t, so the first label of a row is never counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.tasks.base import IGNORED, Batch, Features, Record, Row, Task
from peftkit.tasks.positions import Wanted, token_losses, token_records

if TYPE_CHECKING:
    from torch import Tensor


class NextToken(Task):
    """A decoder's next token, wherever `labels` names one. What `causal_lm` and `chat` add is `encode`."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "token_accuracy")
    splits_rows: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    def model_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        return stack(features, processor)

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def wanted(self, batch: Batch) -> Wanted:
        return Wanted(shifted(batch["labels"]))

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return token_losses(outputs, shifted(batch["labels"])).sum()

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        return token_records(outputs, shifted(batch["labels"]))

    def prompts(self, batch: Batch, processor: Any) -> dict[str, Any] | None:
        """All before the last run of targets, with padding on the left. A row without targets is its own prompt."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        ids = [row[: run.start] for row, run in zip(batch["input_ids"], last_runs(batch), strict=True)]
        ends = {answer[-1] for answer in self.expected(batch) or () if answer}
        return {
            "input_ids": pad_sequence(ids, True, padding_id(processor), "left"),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True, 0, "left"),
            # A chat template may end a turn with another token than the one that ends a text.
            "eos_token_id": sorted(ends & special_ids(processor)),
        }

    def expected(self, batch: Batch) -> list[list[int]] | None:
        return [row[run].tolist() for row, run in zip(batch["input_ids"], last_runs(batch), strict=True)]

    def judge(self, row: Row, records: Sequence[Record], processor: Any) -> Record:
        record, special = dict(records[0]), special_ids(processor)
        for ids, text in (("generated_ids", "generated"), ("reference_ids", "reference")):
            if ids in record:
                words = [token for token in record[ids] if token not in special]
                record[text] = processor.decode(words).strip()
        return record

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        marked = zip(features["input_ids"], features["labels"], strict=True)
        runs = groupby(marked, key=lambda position: position[1] != IGNORED)
        return [(processor.decode([token for token, _ in run]), target) for target, run in runs]


def last_runs(batch: Batch) -> list[slice]:
    """Where each row's last run of targets stands; an empty one behind a row that has none."""
    runs = []
    for labels, mask in zip(batch["labels"].tolist(), batch["attention_mask"].tolist(), strict=True):
        stop = sum(mask)
        while stop and labels[stop - 1] == IGNORED:
            stop -= 1
        start = stop
        while start and labels[start - 1] != IGNORED:
            start -= 1
        runs.append(slice(start, stop) if stop else slice(sum(mask), sum(mask)))
    return runs


def shifted(labels: Tensor) -> Tensor:
    """(rows, positions): at each position the label of the next one, which the logits there predict."""
    from torch.nn.functional import pad

    return pad(labels[:, 1:], (0, 1), value=IGNORED)


def stack(features: Sequence[Features], tokenizer: Any) -> Batch:
    """Features as tensors, padded on the right; `attention_mask` comes from the lengths, never from the padding's id."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    fills = {"input_ids": padding_id(tokenizer), "labels": IGNORED}
    batch: Batch = {}
    for name in features[0]:
        column = [torch.as_tensor(row[name]) for row in features]
        scalars = column[0].ndim == 0
        batch[name] = torch.stack(column) if scalars else pad_sequence(column, True, fills.get(name, 0))
    mask = [torch.ones(len(row["input_ids"]), dtype=torch.long) for row in features]
    return {**batch, "attention_mask": pad_sequence(mask, batch_first=True)}


def special_ids(tokenizer: Any) -> set[int]:
    """Tokens that are never part of a text: those with a name (bos, eos, ...) and added ones that are marked as special."""
    added = {token for token, text in tokenizer.added_tokens_decoder.items() if text.special}
    return added | set(tokenizer.all_special_ids)


def padding_id(tokenizer: Any) -> int:
    """The id that fills up short rows; any will do, as neither the mask nor the labels depend on it."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in candidates if token is not None)
