"""A run -> what can be deployed, verified: `peftkit export RUN --to merged`."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor, nn

from peftkit.atomic import put_in_place, recover
from peftkit.config.export import Bounds
from peftkit.config.read import decisive
from peftkit.config.read import load as load_run
from peftkit.config.run import Run
from peftkit.config.trust import unasked
from peftkit.data.prepare import Prepared
from peftkit.engine.checkpoint import read_progress, read_result
from peftkit.engine.ds_config import read_config
from peftkit.engine.open import DTYPES, choose_precision
from peftkit.engine.statistics import statistics
from peftkit.errors import CheckpointError, ConfigError, ExportError
from peftkit.evaluation.certificate import Certificate, files_of
from peftkit.evaluation.verify import plain_model
from peftkit.exporters import Exporter
from peftkit.exporters.base import Reading
from peftkit.exporters.history import History, read_history
from peftkit.exporters.manual import READ_AS, Manual
from peftkit.exporters.older import tell_older_readers
from peftkit.exporters.servers import serving_notes
from peftkit.flows.card import write_card
from peftkit.flows.certify import Checks, certify, interview, show
from peftkit.flows.held import held_out, held_rows
from peftkit.flows.job import check_base, prepare_data
from peftkit.flows.place import place_of
from peftkit.flows.room import told_when_no_room
from peftkit.models.configure import configure
from peftkit.models.find import find
from peftkit.models.load import Base, base_files, load
from peftkit.models.whole import whole_weights
from peftkit.run_folder import RunFolder
from peftkit.strategies import Strategy
from peftkit.strategies.qlora import unquantised_layers
from peftkit.tasks.base import Batch
from peftkit.tracking.quiet import chatter_to, is_active, terminal


def export(
    run_folder: Path,
    to: str | Exporter = "merged",
    checkpoint: str | None = None,
    verbose: bool = False,
    trust: bool = False,
    name: str | None = None,
    out: Path | None = None,
    bounds: Bounds = Bounds(),  # noqa: B008  # frozen
    force: bool = False,
) -> Path:
    """Export a run to RUN/export/<exporter>/, and return that folder.

    `checkpoint` is "last", "best", "average" (of the last ones), or a step such as "100"; left out, what the run's
    `checkpoint.final` says. `name` is another name under RUN/export, `out` a folder anywhere.
    `trust` allows Python code that comes with the base: the run's folder, whoever it is from, cannot allow it itself.
    `bounds` are limits in the place of those that follow from the exporter.
    Raises ExportError, and leaves nothing, if the export is not what was trained; with `force` it is kept and marked.
    """
    folder = RunFolder(run_folder)
    folder.check_links()
    run = read_run(folder.config, trust)
    exporter = read_exporter(to)
    exporter.ready()
    check_fits(exporter, run.strategy)
    taken = find_checkpoints(folder, checkpoint or run.checkpoint.final, run.checkpoint.average)
    trained_in = taken[-1]
    place = place_of(folder, exporter, name, out)
    # Inside a training's own `chatter_to` there is nothing left to divert.
    with (
        chatter_to(folder.logs / "export.log", verbose or is_active()),
        told_when_no_room(folder.path),
        whole_weights(),
    ):
        check_serves(exporter, run)
        run, base, prepared = load_run_base(run, read_progress(trained_in).tuned)
        held = held_rows(run, base, prepared)
        batches = held_out(run, base, prepared)
        model = run.strategy.adapt(base.model, base.fresh)
        put_trained(model, read_result(taken, averaged=run.regularize.ema is not None))
        certificate = export_trained(
            exporter, model, base.processor, run, batches, place,
            source=base.source, fingerprint=check_base(trained_in, base),
            step=int(trained_in.name.rpartition("-")[2]), metrics=scored_metrics(folder, taken, run.checkpoint.final == "average"),
            history=read_history(folder), checks=Checks(bounds, force, held),
        )  # fmt: skip
        show(certificate, place)
        for line in serving_notes(place, exporter.name, run.task.model_class().__name__):
            told = line.replace("FOLDER", str(place))
            Console(file=terminal(), highlight=False).print(told, markup=False, soft_wrap=True)
    return place


def export_trained(
    exporter: Exporter,
    model: nn.Module,
    processor: Any,
    run: Run,
    batches: Sequence[Batch],
    folder: Path,
    *,
    source: str,
    fingerprint: str | None = None,
    step: int | None = None,
    metrics: Mapping[str, float] | None = None,
    history: History = History(),  # noqa: B008  # frozen
    checks: Checks = Checks(),  # noqa: B008  # frozen
) -> Certificate:
    """Write the adapted `model` to `folder`, compare it there with `model`, and certify it.

    The folder appears when all is done; on any error nothing is left. `model` holds its trained weights whole (under
    ZeRO-3: gathered); only an exporter with `keeps_model` leaves it usable. `run.task` knows its labels, `source` is
    where `load` found the base.
    """
    check_fits(exporter, run.strategy)
    if why := exporter.refuses(run.task, plain_model(model).config, run.strategy):
        raise ConfigError(f"--to {exporter.name}: {why}")
    if not batches:
        raise ExportError("no rows to compare the export on; give --data.validation")
    reading = reading_of(model, run, source)
    before = interview(model, run.task, batches, checks.held)
    known = {
        "run": hashlib.sha256(json.dumps(decisive(run), sort_keys=True).encode()).hexdigest(),
        "base": reading.base,
        "revision": run.model.revision,
        "fingerprint": fingerprint,
        "base_files": base_files(run.model, source, run.data.cache),
        "step": step,
    }
    recover(folder)
    partial = emptied(folder.with_name(f"{folder.name}.partial"))
    try:
        processor.save_pretrained(partial)  # first: a format of its own takes the vocabulary from there
        exporter.write(model, run.strategy, partial, reading, before.asked.inputs[0])
        tell_older_readers(partial)
        read_as = run.data.model_dump(mode="json", include=set(READ_AS))
        Manual(exporter, reading, run.task, read_as, run.generate.model_dump(mode="json")).write(partial)
        certificate = certify(exporter, partial, reading, before, checks, known)
        write_card(partial, exporter, run, folder, reading, metrics or {}, history, certificate)
        certificate = certificate.model_copy(update={"files": files_of(partial)}).write(partial)
        put_in_place(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return certificate


def reading_of(model: nn.Module, run: Run, source: str) -> Reading:
    """How a stranger opens what comes of this model."""
    plain = plain_model(model)
    return Reading(
        auto_class=run.task.model_class().__name__,
        base=str(Path(source).absolute()) if Path(source).is_dir() else source,
        revision=run.model.revision,
        trust_remote_code=run.model.trust_remote_code,
        dtype=str(plain.config.dtype or next(plain.parameters()).dtype).removeprefix("torch."),
        strategy=run.strategy.model_dump(mode="json"),
        unquantised=tuple(unquantised_layers(model)) if "quant_type" in type(run.strategy).model_fields else (),
        labels=dict(plain.config.id2label) if "num_labels" in run.task.model_options() else {},
        padding=getattr(plain.config.get_text_config(), "pad_token_id", None),
        vocabulary=len(plain.get_input_embeddings().weight) if run.model.add_tokens else None,
    )


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def read_run(file: Path, trust: bool = False) -> Run:
    """The settings with which the run began. Code that comes with its base is allowed by the user, now or when he trained it."""
    if not file.is_file():
        raise ConfigError(f"{file.parent} is no run's folder: it has no {file.name}")
    run = load_run(file)
    asked = trust or (run.model.trust_remote_code and "model.trust_remote_code" not in unasked(run))
    return run.model_copy(update={"model": run.model.model_copy(update={"trust_remote_code": asked})})


def read_exporter(to: str | Exporter) -> Exporter:
    if isinstance(to, Exporter):
        return to
    try:
        exporter: Exporter = Exporter.model_validate(to)
    except ValidationError as problem:
        raise ConfigError(f"--to {to}: {problem.errors()[0]['msg']}") from None
    return exporter


def check_fits(exporter: Exporter, strategy: Strategy) -> None:
    """ConfigError if no model of this strategy can be exported so."""
    if exporter.needs_adapter and not strategy.makes_adapter:
        raise ConfigError(
            f"--to {exporter.name}: --strategy {strategy.name} makes no adapter; export it with --to merged"
        )


def find_checkpoints(folder: RunFolder, wanted: str, count: int) -> list[Path]:
    """What `find_checkpoint` finds, or for `average` the last `count` of them, oldest first; fewer if there are fewer."""
    if wanted != "average":
        return [find_checkpoint(folder, wanted)]
    steps = folder.checkpoint_steps()[-count:]
    if not steps:
        raise CheckpointError(f"{folder.path} has no complete checkpoint to export")
    if len(steps) < count:
        told = f"averaging {len(steps)} checkpoints, as there are no {count} (steps {', '.join(map(str, steps))})"
        Console(file=terminal(), highlight=False).print(told)
    return [folder.checkpoint(step) for step in steps]


def find_checkpoint(folder: RunFolder, wanted: str) -> Path:
    """The folder of the `last` checkpoint, of the `best`, or of the step that is named (`100` or `step-000100`)."""
    steps = folder.checkpoint_steps()
    if not steps:
        raise CheckpointError(f"{folder.path} has no complete checkpoint to export")
    last = folder.checkpoint(steps[-1])
    if wanted == "best":
        wanted = str(read_progress(last).best_step or "last")  # nothing was scored: the last is all there is
    if wanted == "last":
        return last
    number = wanted.removeprefix("step-")
    if not number.isdigit() or int(number) not in steps:
        raise ConfigError(f"--checkpoint {wanted}: {folder.path} has no such step; it has {', '.join(map(str, steps))}")
    return folder.checkpoint(int(number))


def check_serves(exporter: Exporter, run: Run) -> None:
    """ConfigError if the exporter does not serve the run's task, the base's architecture or the strategy."""
    config = configure(run.model, run.task, find(run.model, run.data.cache))
    if why := exporter.refuses(run.task, config, run.strategy):
        raise ConfigError(f"--to {exporter.name}: {why}")


def open_run(run: Run, tuned: Mapping[str, Any]) -> tuple[Run, Base, list[Batch]]:
    """The run with what its task learnt from the rows (its labels, its thresholds), the base, and held-out rows."""
    run, base, prepared = load_run_base(run, tuned)
    return run, base, held_out(run, base, prepared)


def load_run_base(run: Run, tuned: Mapping[str, Any]) -> tuple[Run, Base, Prepared]:
    _, prepared = prepare_data(run)
    run = run.model_copy(update={"task": prepared.task.model_copy(update=dict(tuned))})
    return run, load(run.model, run.task, run.strategy, dtype_of(run), run.seed, run.data.cache), prepared


def dtype_of(run: Run) -> torch.dtype:
    """The format that training loaded the base in."""
    if run.precision == "auto":
        return DTYPES[choose_precision("auto", read_config(run.deepspeed))]
    return DTYPES[run.precision]


def put_trained(model: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Put a checkpoint's fp32 weights into the adapted model; CheckpointError if they are not this model's."""
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    expected = [*statistics(model), *(name for name, weight in model.named_parameters() if weight.requires_grad)]
    strange = sorted(trained.keys() - parameters.keys())
    lacking = sorted(set(expected) - trained.keys())
    misfit = sorted(
        name for name in trained.keys() & parameters.keys() if trained[name].shape != parameters[name].shape
    )
    for what, names in (("unknown to the model", strange), ("missing", lacking), ("of another shape", misfit)):
        if names:
            raise CheckpointError(
                f"the checkpoint does not fit the model: {len(names)} weights {what}, such as {names[0]}"
            )
    for name, value in trained.items():
        parameters[name].data = value.to(parameters[name].device)


def scored_metrics(folder: RunFolder, taken: Sequence[Path], tests_average: bool) -> dict[str, float]:
    """What the weights of these checkpoints scored, with the ends of intervals (`test f1/low`); without the numbers of single
    labels, languages, ... (`f1/good`).

    Validations score the weights of their step, and the test what the run exports: the mean of checkpoints, if it
    `tests_average`.
    """
    if not folder.metrics.is_file():
        return {}
    step, is_mean = int(taken[-1].name.rpartition("-")[2]), len(taken) > 1
    rows = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    last = {row["split"]: row for row in rows if "split" in row and row["step"] == step}
    return {
        f"{split} {name}": value
        for split, row in last.items()
        if is_mean == (tests_average and split == "test")
        for name, value in row.items()
        if isinstance(value, (int, float)) and name != "step" and "/" not in re.sub("/(low|high)$", "", name)
    }
