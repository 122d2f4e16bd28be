"""When the memory is full: what was held by what, and the settings that would help most, with what each would save."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from peftkit.config.run import Run
from peftkit.engine.ds_config import offload_devices, stage_of
from peftkit.engine.memory import Held, available, forget_peak, held, is_out_of_memory, peak, size, used
from peftkit.engine.open import Engine, choose_precision
from peftkit.engine.world import World
from peftkit.errors import ConfigError, OutOfMemoryError, PeftkitError
from peftkit.flows.job import Job
from peftkit.models.inspect import count, linear_layers, stacks

BEST = 3
"""So many settings are named."""
SIMPLER = 0.7
"""Of two values of one setting the milder is named if it saves this share of what the other does."""
FOUR_BITS = 4.5 / 8
"""Bytes of a weight in 4 bits, with its share of a block's scale."""
LORA = 0.02
"""About the share of a model's weights that adapters are."""
LAYER_INPUT = 1 / 16
"""About the share of a layer's activations that are its input, which checkpointing keeps."""
IN_16_BITS = 3 / 8
"""About the share of the layers' activations that 16 bits save: norms and softmax keep fp32 copies."""
LOGITS = 3
"""The logits, their fp32 copy's probabilities and their gradient."""


@dataclass
class Meter:
    """What one process holds. `engine` and `step` follow the training; what was there before them is neither's."""

    job: Job | None = None
    engine: Engine | None = None
    beside: int = 0
    """Bytes of Python, libraries and rows."""

    def begin(self, job: Job, engine: Engine) -> None:
        """The engine stands, and no step was taken."""
        self.job, self.engine = job, engine
        self.beside = max(0, used() - held(engine, job.model).total)
        forget_peak()


@dataclass(frozen=True)
class Full:
    """What was held when the memory was full. `activations` is what is not the rest's."""

    parts: Held
    activations: int
    beside: int


@contextmanager
def told_when_full(run: Run, world: World, meter: Meter, step: Callable[[], int]) -> Iterator[None]:
    """Any way of running out of memory becomes an OutOfMemoryError that says what held it and what would help."""
    try:
        yield
    except Exception as problem:
        if isinstance(problem, PeftkitError) or not is_out_of_memory(problem):
            raise
        most, left = peak(), available(world)
        # What was computed hangs on the frames of the error: without it there is room to say something.
        traceback.clear_frames(problem.__traceback__)
        raise OutOfMemoryError(told(run, world, meter, step(), problem, most, left)) from problem


def told(run: Run, world: World, meter: Meter, step: int, problem: Exception, most: int, left: int) -> str:
    """The error's text."""
    where = f"process {world.process} of {world.processes}" if world.processes > 1 else "this process"
    when = f"after step {step}" if step else "before its first step was done"
    asked = _asked(str(problem))
    wanted = (
        f" ({size(asked)} more were asked for, and {size(left)} were left)" if asked else f" ({size(left)} were left)"
    )
    if meter.job is None:
        hints = ["--precision bf16", "--strategy qlora", "a smaller --model"]
        return f"out of memory: {where} could not load the model{wanted}. What would help: {'; '.join(hints)}"
    full = measured(meter.job.model, meter, most)
    parts = full.parts
    there = (
        f"weights {size(parts.weights)}, gradients {size(parts.gradients)}, optimizer {size(parts.optimizer)},"
        f" activations {size(full.activations)}, Python and libraries {size(full.beside)}"
    )
    best = remedies(run, meter.job, full)
    help_most = (
        "; ".join(f"{one.setting} (about {size(one.saves)} less)" for one in best) or "a machine with more memory"
    )
    return f"out of memory: {where}, {when}{wanted}.\nit held at most: {there}\nwhat would help most: {help_most}"


def measured(model: nn.Module, meter: Meter, most: int) -> Full:
    """The parts of `most` bytes."""
    parts = held(meter.engine, model)
    return Full(parts, max(0, most - parts.total - meter.beside), meter.beside)


def _asked(problem: str) -> int | None:
    """The bytes that could not be had, where the allocator says them."""
    found = re.search(r"allocate ([\d.]+) (bytes|KiB|MiB|GiB)", problem)
    units = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    return int(float(found[1]) * units[found[2]]) if found else None


@dataclass(frozen=True)
class Remedy:
    """A setting that the run has not taken yet, and the bytes a process that it would save."""

    setting: str
    saves: int


def remedies(run: Run, job: Job, full: Full) -> list[Remedy]:
    """The best ones, the best first."""
    found = [*_of_rows(run, job, full), *_of_weights(run, job, full), *_of_engine(run, job, full)]
    best: dict[str, Remedy] = {}
    for one in found:  # of each setting the milder value stands first
        name = one.setting.split()[0]
        if name not in best or best[name].saves < SIMPLER * one.saves:
            best[name] = one
    useful = [one for one in best.values() if one.saves >= 2**20 or one.saves > full.parts.total / 100]
    return sorted(useful, key=lambda one: -one.saves)[:BEST]


def _of_rows(run: Run, job: Job, full: Full) -> Iterator[Remedy]:
    """What makes fewer activations."""
    micro, tokens, longest = run.batch.rows, run.batch.tokens, max(job.prepared.train.lengths, default=1)
    if micro > 1:
        fewer = max(1, micro // 4)
        yield Remedy(f"--batch.micro {fewer}", int(full.activations * (1 - fewer / micro)))
    elif tokens and tokens > longest:
        fewer = max(longest, tokens // 4)
        yield Remedy(f"--batch.tokens {fewer}", int(full.activations * (1 - fewer / tokens)))
    layers = sum(stack.layers for stack in stacks(job.model))
    if not run.model.gradient_checkpointing and layers > 1:
        saved = inside(run, job, full) * max(0.0, 1 - 1 / layers - LAYER_INPUT)
        yield Remedy("--model.gradient_checkpointing", int(saved))
    if run.task.reads == "text" and longest > 64:
        yield Remedy(f"--data.max_length {longest // 2}", int(full.activations * (1 - (longest // 2) / longest)))


def inside(run: Run, job: Job, full: Full) -> int:
    """The activations of the layers."""
    return max(0, full.activations - logits(run, job))


def logits(run: Run, job: Job) -> int:
    """Bytes of a micro-batch's logits over the vocabulary, which no checkpointing saves; 0 for a model without."""
    ends = getattr(job.model, "get_output_embeddings", lambda: None)()
    words = getattr(ends, "out_features", 0)
    tokens = run.batch.tokens or run.batch.rows * max(job.prepared.train.lengths, default=1)
    return LOGITS * 4 * tokens * words


def _of_weights(run: Run, job: Job, full: Full) -> Iterator[Remedy]:
    """What makes fewer or smaller weights, gradients and moments."""
    parts, trainable = full.parts, count(job.model).share
    processes = job.world.processes if stage_of(job.deepspeed) else 1
    moments = max(parts.moments, 2 * 4 * count(job.model).trainable // processes)
    if (
        run.optim.name in ("adamw", "adam")
        and offload_devices(job.deepspeed)[0] == "none"
        and find_spec("bitsandbytes")
    ):
        yield Remedy("--optim adamw_8bit", int(moments * 0.75))
    saved = 0
    if trainable > 0.1:
        rest = parts.optimizer - parts.moments + moments
        saved = int((parts.gradients + rest) * (1 - LORA / trainable))
        yield Remedy("--strategy lora", saved)
    linear = _frozen_bytes(job.model)
    if run.strategy.name != "qlora" and linear and find_spec("bitsandbytes"):
        yield Remedy("--strategy qlora", saved + linear)
    if job.precision == "fp32" and _computes("bf16", job):
        copies = parts.weights // 2 if trainable < 0.1 or stage_of(job.deepspeed) else 0
        yield Remedy("--precision bf16", copies + int(inside(run, job, full) * IN_16_BITS))


def _computes(precision: str, job: Job) -> bool:
    try:
        return choose_precision(precision, job.deepspeed) == precision
    except ConfigError:
        return False


def _frozen_bytes(model: nn.Module) -> int:
    """What 4 bits would save of the linear layers' weights."""
    weights = [layer.weight for layer in linear_layers(model).values() if isinstance(layer.weight, torch.Tensor)]
    return sum(
        int(weight.numel() * (weight.element_size() - FOUR_BITS)) for weight in weights if weight.is_floating_point()
    )


def _of_engine(run: Run, job: Job, full: Full) -> Iterator[Remedy]:
    """What ZeRO would divide among the processes, or move to the host."""
    parts, stage, others = full.parts, stage_of(job.deepspeed), 1 - 1 / job.world.processes
    optimizer = int(parts.optimizer * others) if stage == 0 else 0
    gradients = int(parts.gradients * others) if stage < 2 else 0
    if others and stage < 2:
        yield Remedy("--deepspeed zero2", optimizer + gradients)
    if others and stage < 3:
        yield Remedy("--deepspeed zero3", optimizer + gradients + int(parts.weights * others))
    offloaded, parameters = offload_devices(job.deepspeed)
    if torch.cuda.is_available():
        if offloaded == "none":
            yield Remedy("--deepspeed zero2_offload", parts.optimizer + gradients)
        if parameters == "none":
            yield Remedy(
                "--deepspeed zero3_offload", parts.optimizer * (offloaded == "none") + gradients + parts.weights
            )
