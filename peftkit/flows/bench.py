"""`peftkit bench`: some steps of a run, and where their time and memory go; nothing of it stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import profile

from peftkit.config.run import Run
from peftkit.data.batches import step_rows
from peftkit.data.made import write_conversations
from peftkit.engine.checkpoint import Progress
from peftkit.engine.loop import Step
from peftkit.engine.memory import peak, size
from peftkit.engine.stopwatch import PARTS, Stopwatch, timed
from peftkit.engine.world import World, joined
from peftkit.flows.describe import Pairs, header_of
from peftkit.flows.fit import fitted
from peftkit.flows.job import Job, check_settings, make_job
from peftkit.flows.memory import Full, Meter, measured, told_when_full
from peftkit.flows.stages import all_steps, join_references, open_at
from peftkit.run_folder import RunFolder
from peftkit.tracking.quiet import chatter_to
from peftkit.tracking.teller import Teller

WARM = 2
"""Steps before those that are counted: memory is found, kernels are chosen, nothing is typical yet."""
DEAREST = 8
"""So many operations of a traced step are named."""
MADE = 8
"""Steps' worth of rows that are made where none are named."""


@dataclass(frozen=True)
class Measured:
    """What the counted steps took on this process."""

    steps: list[Step]
    tokens: int
    """Of the steps' rows, on all processes, without padding."""
    seconds: dict[str, float]
    cpu: dict[str, float]
    memory: Full
    operations: Pairs
    """The traced step's dearest ones; none without a trace."""

    @property
    def whole(self) -> float:
        return sum(self.seconds.values())


def bench(run: Run, steps: int = 5, trace: Path | None = None) -> Measured:
    """Take `steps` steps as `run` says, after the first ones, and tell where time and memory go; every process calls it.

    `trace` is the file that another step's profile is written to, in chrome's format (Perfetto and chrome://tracing read it).
    """
    check_settings(run)
    with joined() as world, scratch(world) as place, closing(Teller(world.first)) as teller:
        folder, meter = RunFolder(place / "run"), Meter()
        with chatter_to(None, run.verbose), told_when_full(run, world, meter, lambda: 0):
            meter.job = make_job(arranged(run, place, WARM + steps + (trace is not None)), world)
            job = fitted(meter.job, folder, teller)
            teller.header("bench", header_of(job, folder)[:-1])
            teller.note(f"{WARM} steps to warm up, then {steps} that are counted ...")
            found = take(job, meter, folder, steps, trace)
        teller.header("speed", speed_words(found))
        teller.header("time of a step", time_words(found))
        teller.header("memory of this process", memory_words(found.memory))
        if trace:
            teller.header("dearest operations of one more step", found.operations)
            teller.note(f"the trace of that step: {trace} (open it in https://ui.perfetto.dev)")
    return found


@contextmanager
def scratch(world: World) -> Iterator[Path]:
    """A folder of all processes on this machine, gone afterwards."""
    with TemporaryDirectory(prefix="peftkit-bench-") as own:
        yield Path(world.share(own))
        world.wait()


def arranged(run: Run, place: Path, steps: int) -> Run:
    """The run with so many steps, its folder in `place`, and rows if it names none."""
    more: dict[str, Any] = {"steps": steps, "epochs": None, "out": place / "run", "resume": False}
    if run.data.first is None:
        rows = write_conversations(place / "rows.jsonl", MADE * run.batch.total, run.seed)
        more["data"] = run.data.model_copy(update={"train": str(rows), "holdout": 0.0})
    return run.model_copy(update=more)


def take(job: Job, meter: Meter, folder: RunFolder, steps: int, trace: Path | None) -> Measured:
    """Open the engine and take the steps."""
    engine, watch = open_at(job, 0, None), Stopwatch()
    meter.begin(job, engine)
    if job.run.task.reference:
        join_references(job, engine, folder, True)
    read = job.batches
    job.batches = lambda first, last: watch.each(read(first, last))  # type: ignore[method-assign]
    with timed(engine, watch):
        taken = all_steps(job, engine, Progress())
        for _ in range(WARM):
            next(taken)
        watch.begin()
        counted = [next(taken)[1] for _ in range(steps)]
        watch.turn(PARTS[-1])
        found = Measured(
            counted,
            sum(tokens_of(job, step) for step in counted),
            dict(watch.seconds),
            dict(watch.cpu),
            measured(job.model, meter, peak()),
            [],
        )
        if trace:
            with profile() as profiled:
                engine = next(taken)[0]
            write_trace(profiled, trace, job.world)
            found.operations.extend(operation_words(profiled.key_averages()))
    engine.close()
    return found


def write_trace(profiled: Any, file: Path, world: World) -> None:
    """The first process's, as it was named; the others' with their number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    own = file if world.first else file.with_name(f"{file.stem}-{world.process}{file.suffix}")
    profiled.export_chrome_trace(str(own))


def operation_words(events: Iterable[Any]) -> Pairs:
    """Seconds in an operation itself, not in those that it calls: on the GPU if one computes, else on this process's threads."""
    found = list(events)
    # What is called by a name, the step's parts, has all the time on a GPU of what it calls.
    seconds = {event.key: event.self_device_time_total / 1e6 for event in found if not event.is_user_annotation}
    if not any(seconds.values()):
        seconds = {event.key: event.self_cpu_time_total / 1e6 for event in found}
    calls, whole = {event.key: event.count for event in found}, sum(seconds.values())
    dearest = sorted(seconds, key=lambda name: -seconds[name])[:DEAREST]
    return [(name, f"{seconds[name]:8.3f} s  {seconds[name] / whole:6.1%}   {calls[name]:,} calls") for name in dearest]


def tokens_of(job: Job, step: Step) -> int:
    """The useful tokens (or other positions) of a step's rows."""
    store = job.prepared.train
    rows = step_rows(step.step - 1, store.epoch, job.run.batch.total, job.run.seed, store.draws)
    return int(sum(store.lengths[row] for row in rows))


def speed_words(found: Measured) -> Pairs:
    targets, cpu = sum(step.targets for step in found.steps), sum(found.cpu.values())
    return [
        ("a step", f"{found.whole / len(found.steps):.3g} s, {cpu / len(found.steps):.3g} CPU s of this process"),
        ("tokens", f"{found.tokens / found.whole:,.0f} a second, without padding"),
        ("targets", f"{targets / found.whole:,.0f} a second"),
    ]


def time_words(found: Measured) -> Pairs:
    """A line for each part; they add up to the step."""
    return [(part, of_a_step(found, part)) for part in PARTS]


def of_a_step(found: Measured, part: str) -> str:
    seconds, cpu = (counted[part] / len(found.steps) for counted in (found.seconds, found.cpu))
    return f"{seconds:8.3f} s  {found.seconds[part] / found.whole:6.1%}   CPU {cpu:8.3f} s"


def memory_words(full: Full) -> Pairs:
    """A line for each thing that is held; they add up to the peak."""
    held = full.parts
    parts = {
        "weights": held.weights,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "activations": full.activations,
        "Python and libraries": full.beside,
    }
    return [*((name, size(count)) for name, count in parts.items()), ("at most, all", size(sum(parts.values())))]
