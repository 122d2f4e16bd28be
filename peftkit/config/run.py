"""One training: everything that it is asked to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny

from peftkit.config.idle import idle
from peftkit.config.section import Section
from peftkit.config.sections import Batch, Checkpoint, Data, Eval, Generate, Guard, Model, Regularize
from peftkit.config.slurm import Slurm
from peftkit.config.speed import Speed
from peftkit.engine.optim import Optimizer
from peftkit.engine.schedule import Schedule
from peftkit.errors import ConfigError
from peftkit.strategies import Strategy
from peftkit.tasks import Task


def default(family: Any) -> Any:
    return Field(default_factory=lambda: family.model_validate({}))


class Run(Section):
    """One training, one folder.

    >>> Run(strategy="full", batch=8).batch.total
    8
    """

    model: Model = Model()
    """The base model."""
    task: SerializeAsAny[Task] = default(Task)
    """What is learnt."""
    strategy: SerializeAsAny[Strategy] = default(Strategy)
    """Which weights train."""
    data: Data = Data()
    """The rows."""
    batch: Batch = Batch()
    """How many rows make a step, and how it is split."""
    steps: PositiveInt | None = None
    """Optimizer steps; left out: as many as `epochs` has."""
    epochs: PositiveFloat | None = None
    """Passes over the training rows; left out: 1, or as many as `steps` needs."""
    optim: SerializeAsAny[Optimizer] = default(Optimizer)
    """How a gradient becomes an update."""
    schedule: SerializeAsAny[Schedule] = default(Schedule)
    """How the learning rate moves."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the forward and backward pass; auto is bf16 where a GPU computes in it, else fp32."""
    deepspeed: str = "zero2"
    """A DeepSpeed configuration: a path to its JSON, or one of ds_configs/ by name (zero0 .. zero3_offload)."""
    speed: Speed = Speed()
    """How the same numbers are computed with less work and memory."""
    regularize: Regularize = Regularize()
    """What keeps a model from learning its rows by heart."""
    eval: Eval = Eval()
    """When and how the model is scored."""
    generate: Generate = Generate()
    """How text is written in an evaluation."""
    checkpoint: Checkpoint = Checkpoint()
    """When and what is saved."""
    guard: Guard = Guard()
    """What ends or interrupts a training that goes wrong."""
    slurm: Slurm = Slurm()
    """What `peftkit submit` asks a SLURM cluster for."""
    out: Path | None = None
    """The run folder; left out: runs/<model>-<task>-<strategy>, with a number behind it if that is taken."""
    seed: NonNegativeInt = 42
    """Seed of everything that is drawn: splits, order of rows, new weights, dropout."""
    resume: bool = False
    """Go on from the newest good checkpoint in `out` (or from the start); other settings default to the folder's own."""
    verbose: bool = False
    """Let DeepSpeed, transformers and torch speak on the terminal instead of in logs/."""

    def problems(self) -> Iterator[str]:
        """Every clash of settings, a sentence each."""
        if self.steps and self.epochs:
            yield f"--steps {self.steps} and --epochs {self.epochs:g} both say when to stop; give one of them"
        if self.resume and not self.out:
            yield "--resume needs --out RUN, the folder of the run to go on with"
        yield from self._deepspeed_problems()
        yield from idle(self)
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Section):
                yield from value.conflicts(self)

    def _deepspeed_problems(self) -> Iterator[str]:
        from peftkit.engine.ds_config import find_config  # light, but it stands on a higher floor

        try:
            find_config(self.deepspeed)
        except ConfigError as problem:
            yield from problem.problems
