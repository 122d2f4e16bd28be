"""The sections of a run that are no choices: model, data, batch, evaluation, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, SerializeAsAny

from peftkit.config.section import Section
from peftkit.metrics import Metric
from peftkit.registry import did_you_mean


class Model(Section):
    """The base model."""

    shorthand: ClassVar[str | None] = "path"

    path: str | None = None
    """A hub name (ORG/NAME), a folder, or a .gguf file. Left out: SmolLM2-135M-Instruct, from a package (extra `demo`)."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    tokenizer: str | None = None
    """A tokenizer from elsewhere: a hub name or a folder."""
    chat_template: Path | None = None
    """A Jinja file that replaces the tokenizer's own chat template."""
    add_tokens: list[str] = []
    """Tokens to add to the vocabulary; their embeddings are trained and saved."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel; auto leaves it to transformers."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Replaces every dropout probability of the model's configuration."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off unless you have read that code."""


class Data(Section):
    """The rows."""

    shorthand: ClassVar[str | None] = "train"

    train: str | None = None
    """A file (.jsonl .json .csv .tsv .parquet .txt) or a hub name. Left out: Python's own functions and their docstrings."""
    validation: str | None = None
    """Rows that are scored during training."""
    test: str | None = None
    """Rows that are scored once, at the end."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the training rows (at least one) held out for validation where no validation rows are given; 0 holds out none."""
    columns: dict[str, str] = {}
    """Where the columns have other names: task's column -> column of the file, e.g. {text: review, label: stars}."""
    max_length: PositiveInt = 1024
    """Longest row in tokens (also bounded by the model's own limit); what is longer is cut, counted and reported."""
    limit: PositiveInt | None = None
    """Read at most so many rows of each split."""
    cache: Path | None = None
    """Where encoded rows and converted models are kept; left out: $PEFTKIT_CACHE or ~/.cache/peftkit."""


class Batch(Section):
    """How many rows make a step, and how it is split. Only `total` changes what is learnt."""

    shorthand: ClassVar[str | None] = "total"

    total: PositiveInt = 16
    """Rows in one optimizer step, over all processes and micro-batches."""
    micro: PositiveInt = 4
    """Rows in one forward pass on one process: more is faster and takes more memory; the gradient stays the same."""


class Eval(Section):
    """When and how the model is scored."""

    every: PositiveInt | None = None
    """Score the validation rows every so many steps; left out: after every epoch. The end is always scored."""
    before: bool = True
    """Score the base model before the first step."""
    metrics: list[SerializeAsAny[Metric]] | None = None
    """What is computed; left out: the task's own metrics. The loss always is."""
    rows: PositiveInt | None = None
    """Score only the first so many validation rows."""
    batch: PositiveInt = 8
    """Rows in one forward pass of an evaluation."""
    best: str = "loss"
    """The metric that says which checkpoint is best, and when to stop early."""
    patience: PositiveInt | None = None
    """Stop after so many evaluations without a better `best`."""

    def names(self, run: Any) -> list[str]:
        """The metrics that are computed."""
        chosen = run.task.metrics if self.metrics is None else [metric.name for metric in self.metrics]
        return list(dict.fromkeys(["loss", *chosen]))

    def conflicts(self, run: Any) -> Iterator[str]:
        names = self.names(run)
        if self.best in names:
            return
        if self.best in Metric.registry:
            asked = [name for name in names if name != "loss"]
            yield f"--eval.best {self.best} is not computed; add it: --eval.metrics {' '.join([*asked, self.best])}"
        else:
            near = did_you_mean(self.best, [*names, *Metric.registry])
            yield f"--eval.best {self.best} is no number that is computed{near}; there are: {', '.join(names)}"


class Checkpoint(Section):
    """When and what is saved."""

    every: PositiveInt | None = None
    """Save every so many steps; left out: after every epoch. The end is always saved."""
    keep: NonNegativeInt = 2
    """How many of the newest checkpoints stay (0: all); the best one by `--eval.best` always stays."""
    final: Literal["last", "best"] = "last"
    """Which checkpoint is exported: that of the last step, or the best by `--eval.best`."""
