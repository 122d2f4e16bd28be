"""The sections of a run that are no choices: model, data, batch, regularisation, evaluation, generation, checkpoints, guards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny

from peftkit.config.duration import Duration
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
    gradient_checkpointing: bool | Literal["selective", "offload"] = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time. selective
    keeps products and attention, and computes what is cheap again: half of what that saves, for a few per cent more time.
    offload is as true, and what is kept between a GPU's passes (each layer's input) lies in main memory."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Replaces every dropout probability of the model's configuration."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off unless you have read that code."""


Share = Annotated[float, Field(ge=0, lt=1)]


class Source(Section):
    """One source of a mixture of training rows."""

    shorthand: ClassVar[str | None] = "path"

    path: str
    """A file, folder, URL or hub name, as `--data.train`."""
    name: str | None = None
    """What its rows are called in the column `source` (`--eval.by source` scores each apart); left out: the file's name."""
    weight: PositiveFloat = 1
    """How often its rows are learnt beside the others': 2 gives it twice the share that its size does."""
    columns: dict[str, str] = {}
    """As `--data.columns`, for this source alone."""
    task: str | None = None
    """Another task of the run's family (chat beside causal_lm) that reads this source's rows; left out: the run's."""

    @property
    def called(self) -> str:
        """Its name: `reviews` of data/reviews.jsonl.gz, where none is given."""
        return self.name or PurePath(self.path.rstrip("/")).name.split(".")[0] or self.path


class Augment(Section):
    """Changed copies of the training rows' texts (Wei and Zou, 2019, https://arxiv.org/abs/1901.11196)."""

    copies: NonNegativeInt = 0
    """Copies of each training row; the row itself stays."""
    deletion: Share = 0.1
    """Share of the words that a copy leaves out."""
    swap: Share = 0.1
    """Share of the words that a copy changes places with their neighbour."""
    synonym: Share = 0.1
    """Share of the words that a copy replaces by one of their synonyms, where `synonyms` has them."""
    synonyms: Path | None = None
    """A table of synonyms: a line of words with tabs or commas between them, each of which may stand for the others."""


class Data(Section):
    """The rows."""

    shorthand: ClassVar[str | None] = "train"

    train: str | None = None
    """A file, a folder, a URL or a hub name. Left out: Python's own functions and their docstrings."""
    validation: str | None = None
    """Rows that are scored during training."""
    test: str | None = None
    """Rows that are scored once, at the end."""
    mixture: list[Source] = []
    """Several sources of training rows instead of `train`, each with a weight: [{path: a.jsonl, weight: 2}, b.jsonl]."""
    temperature: PositiveFloat = 1
    """How a mixture's sources share an epoch: (weight x rows)^(1/temperature); 1 takes them as they are, more favours the small."""
    holdout: Share = 0.05
    """Share of the training rows (at least one) held out for validation where no validation rows are given; 0 holds out none."""
    test_holdout: Share = 0
    """Share of the training rows held out for the test where no test rows are given."""
    split: Literal["random", "stratified", "group", "time"] = "random"
    """How rows are held out: at random, with each label's share kept, whole groups, or the latest."""
    split_by: str | None = None
    """The column whose groups stay together, which says when, or whose shares are kept (left out: the label)."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Hold out one of so many equal parts for validation, instead of `holdout`."""
    fold: NonNegativeInt = 0
    """Which of the `folds`, from 0."""
    columns: dict[str, str] = {}
    """Where the columns have other names: task's column -> column of the file, e.g. {text: review, label: stars}."""
    max_length: PositiveInt = 1024
    """Longest row in tokens (also bounded by the model's own limit); what is longer is cut, counted and reported."""
    truncate: Literal["right", "left"] = "right"
    """Which end of a row that is too long is cut."""
    stride: NonNegativeInt | None = None
    """Tokens that two windows of a long row share, where the task reads rows in windows; left out: the task's own number."""
    limit: PositiveInt | None = None
    """Read at most so many rows of each split, and of each source of a mixture."""
    balance: Literal["none", "oversample", "weighted"] = "none"
    """Rare labels: as they are, repeated in each epoch until all are as frequent, or drawn as often as each other."""
    augment: Augment = Augment()
    """Changed copies of the training rows."""
    workers: NonNegativeInt | None = None
    """Processes that encode rows; left out: as many as there are cores, if there are rows enough and the tokenizer does not take
    many at once with threads of its own (chats, texts and classes, with fast tokenizers)."""
    cache: Path | None = None
    """Where encoded rows and converted models are kept; left out: $PEFTKIT_CACHE or ~/.cache/peftkit."""

    @property
    def first(self) -> str | None:
        """What is learnt, or the first of it; None: the embedded rows."""
        return self.mixture[0].path if self.mixture else self.train

    @property
    def held_out(self) -> dict[str, float]:
        """Split -> the share of the training rows that is held out for it."""
        shares = {"validation": 1 / self.folds if self.folds else self.holdout, "test": self.test_holdout}
        given = {"validation": self.validation is not None or self.first is None, "test": self.test is not None}
        return {split: share for split, share in shares.items() if share and not given[split]}

    @property
    def validates(self) -> bool:
        """Whether there are rows that are scored during training."""
        return self.validation is not None or self.first is None or "validation" in self.held_out

    def conflicts(self, run: Any) -> Iterator[str]:
        from peftkit.config.rows import clashes

        yield from clashes(run)


class Batch(Section):
    """How many rows make a step, and how it is split. Only `total` changes what is learnt."""

    shorthand: ClassVar[str | None] = "total"

    total: PositiveInt = 16
    """Rows in one optimizer step, over all processes and micro-batches."""
    micro: PositiveInt | Literal["auto"] | None = None
    """Rows in one forward pass on one process; left out: as many as `tokens` lets in; auto: as many as fit the memory."""
    tokens: PositiveInt | None = None
    """Tokens in one forward pass on one process, padding included, but one row at least. More takes more memory; the gradient
    stays the same. Left out, and `micro` too: the longest row's, at least 1024; on a GPU four times that, at least 4096."""

    sequence_parallel: PositiveInt = 1
    """Processes that share each row: every one computes a part of its tokens, and attention for some of the heads (DeepSpeed's
    Ulysses). For rows that are too long for one GPU. It divides the number of processes and of heads."""

    @property
    def rows(self) -> int:
        """`micro`, where it is a number; else 1, which any training can begin with."""
        return self.micro if isinstance(self.micro, int) else 1

    def conflicts(self, run: Any) -> Iterator[str]:
        if self.micro == "auto" and self.tokens:
            yield "--batch.micro auto finds out how many tokens fit, and --batch.tokens names a number; give one of the two"
        if self.sequence_parallel > 1:
            from peftkit.config.shared import clashes

            yield from clashes(run)


class Regularize(Section):
    """What keeps a model from learning its rows by heart."""

    neftune: NonNegativeFloat = 0
    """Noise on the embeddings in training (NEFTune, Jain et al., 2023); 5 is common, 0 is none."""
    r_drop: NonNegativeFloat = 0
    """Weight of the difference between two passes with other dropout (R-Drop, Wu et al., 2021); 0 makes one pass."""
    ema: Share | None = None
    """Decay of a running average of the weights, which is what is scored and exported; 0.999 is common."""
    pull: NonNegativeFloat = 0
    """Pull of the weights towards the base's (L2-SP, Li et al., 2018), as a share of the learning rate."""

    def conflicts(self, run: Any) -> Iterator[str]:
        from peftkit.config.regularize import clashes

        yield from clashes(run)


class Generate(Section):
    """How text is written when an evaluation or a prediction asks for it; always the same text for the same weights."""

    max_new_tokens: PositiveInt = 64
    """Longest text, in tokens."""
    num_beams: PositiveInt = 1
    """Beams that are followed; 1 takes the likeliest token each time."""
    length_penalty: float = 1
    """With beams: over 0 favours long texts, under 0 short ones."""
    repetition_penalty: PositiveFloat = 1
    """Over 1 discourages tokens that are there already."""
    no_repeat_ngram_size: NonNegativeInt = 0
    """No run of so many tokens comes twice; 0 forbids none."""


class Eval(Section):
    """When and how the model is scored."""

    every: PositiveInt | None = None
    """Score the validation rows every so many steps; left out: after every epoch. The end is always scored."""
    before: bool = True
    """Score the base model before the first step."""
    metrics: list[SerializeAsAny[Metric]] | None = None
    """What is computed: names, `hub:NAME` or a path of an `evaluate` metric; left out: the task's own. The loss always is."""
    rows: PositiveInt | None = None
    """Score only the first so many validation rows."""
    batch: PositiveInt = 8
    """Rows in one forward pass of an evaluation."""
    tokens: PositiveInt = 4096
    """Tokens in one, padding included, but one row at least."""
    by: str | None = None
    """A column whose values are scored apart too: language, source, ..."""
    anchor: str | None = None
    """Rows of the old domain (as `--data.train`), scored with every evaluation: they show what is forgotten."""
    bootstrap: NonNegativeInt = 0
    """Samples for the numbers' 95 % intervals, at the last evaluation of a split; 0 computes none."""
    best: str = "loss"
    """The metric that says which checkpoint is best, and when to stop early."""
    patience: PositiveInt | None = None
    """Stop after so many evaluations without a better `best`."""

    def names(self, run: Any) -> list[str]:
        """The metrics that are computed."""
        chosen = run.task.default_metrics() if self.metrics is None else [metric.called for metric in self.metrics]
        return list(dict.fromkeys(["loss", *chosen]))

    def conflicts(self, run: Any) -> Iterator[str]:
        from peftkit.config.scored import unfed

        names = self.names(run)
        for metric in self.metrics or ():
            yield from metric.conflicts(run)
        yield from unfed(self.metrics or (), run.task)
        if self.best in names:
            if self.best in Metric.registry and not Metric.registry[self.best].estimates:
                yield f"--eval.best {self.best} is no single number; name another"
            return
        if self.best in Metric.registry:
            asked = [name for name in names if name != "loss"]
            yield f"--eval.best {self.best} is not computed; add it: --eval.metrics {' '.join([*asked, self.best])}"
        else:
            near = did_you_mean(self.best, [*names, *Metric.registry])
            yield f"--eval.best {self.best} is no number that is computed{near}; there are: {', '.join(names)}"


class Guard(Section):
    """What ends or interrupts a training that goes wrong: processes that hang, losses that are no numbers, sudden losses."""

    timeout: Duration = Duration(1800)
    """How long a process may come no further before it is taken for hung: 30m, 1800 (seconds)."""
    silence: Duration = Duration(120)
    """How long a process may give no sign of life before it is taken for dead: 2m, 120 (seconds)."""
    nonfinite: Literal["skip", "stop"] = "skip"
    """A step whose loss or gradient is NaN or infinite moves nothing: skip goes on with the next one, stop ends the run."""
    nonfinite_limit: PositiveInt = 3
    """So many such steps in a row end the run also with skip."""
    spike: NonNegativeFloat = 10
    """A loss is flagged that lies so many times the usual spread above those before it; 0 flags none."""


class Checkpoint(Section):
    """When and what is saved."""

    every: PositiveInt | None = None
    """Save every so many steps; left out: after every epoch. The end is always saved."""
    keep: NonNegativeInt = 2
    """How many of the newest checkpoints stay (0: all); the best one by `--eval.best` always stays."""
    final: Literal["last", "best", "average"] = "last"
    """What is exported: the last step's weights, the best by `--eval.best`, or the mean of the last `average` checkpoints."""
    average: PositiveInt = 3
    """How many checkpoints `final: average` takes."""
    asynchronous: bool = True
    """Write in the background while training goes on: it stands still only for a copy in main memory."""
    deadline: Duration | None = None
    """Save, and end with exit code 75, before so much time has passed since the start: 4h, 90m, 3600 (seconds)."""

    def conflicts(self, run: Any) -> Iterator[str]:
        from peftkit.config.regularize import averaging_clashes

        yield from averaging_clashes(run)
