"""Settings that would do nothing in a run, a sentence each: what is asked for and then passed over is a surprise later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from peftkit.config.section import Section

NO_VALIDATION = "and there are no validation rows; give --data.validation, or --data.holdout over 0"
LENGTHS = ("max_length", "truncate", "stride")


def idle(run: Any) -> Iterator[str]:
    """Of the whole run."""
    yield from _of_scores(run)
    yield from _of_metrics(run.eval)
    yield from _of_lengths(run.data, run.task)
    yield from _of_copies(run.data.augment)
    yield from _of_holdout(run.data)
    if not run.task.generates:
        for name in changed(run.generate):
            yield f"--generate.{name} says how text is written, and --task {run.task.name} writes none; leave it out"


def changed(section: Section) -> list[str]:
    """The settings that are not as they are when left out."""
    fields = type(section).model_fields
    return [name for name, field in fields.items() if getattr(section, name) != field.get_default()]


def _of_scores(run: Any) -> Iterator[str]:
    """Settings of scores where no row is scored."""
    scored = [run.data.validates, bool(run.data.test or run.data.test_holdout), run.eval.anchor is not None]
    needs = {"rows": scored[0], "best": scored[0], "patience": scored[0], "every": scored[0] or scored[2]}
    needs |= dict.fromkeys(("metrics", "by", "bootstrap"), any(scored))
    for name in changed(run.eval):
        if not needs.get(name, True):
            yield f"--eval.{name} is of scores, {NO_VALIDATION}"
    if run.checkpoint.final == "best" and not scored[0]:
        yield f"--checkpoint.final best is the best by its scores, {NO_VALIDATION}"


def _of_metrics(chosen: Any) -> Iterator[str]:
    """Two metrics of one name: only the numbers of one of them would be kept."""
    for name, count in Counter(metric.called for metric in chosen.metrics or ()).items():
        if count > 1:
            yield f"--eval.metrics has {count} metrics whose numbers are called {name}; leave one of them"


def _of_lengths(data: Any, task: Any) -> Iterator[str]:
    for name in changed(data):
        if name in LENGTHS and name not in task.lengths:
            yield f"--data.{name} {getattr(data, name)} says nothing to --task {task.name}; leave it out"


def _of_copies(augment: Any) -> Iterator[str]:
    if not augment.copies:
        for name in changed(augment):
            yield f"--data.augment.{name} says how copies are changed, and none are made; add --data.augment.copies 1"
    elif augment.synonyms is None and augment.synonym and "synonym" in changed(augment):
        yield f"--data.augment.synonym {augment.synonym:g} needs a table: --data.augment.synonyms FILE"
    elif not (augment.deletion or augment.swap or (augment.synonym and augment.synonyms)):
        yield f"--data.augment.copies {augment.copies}: nothing is left out, swapped or replaced, so no copy differs from its row"


def _of_holdout(data: Any) -> Iterator[str]:
    """A share that is asked for where other rows are scored; 0 asks for none."""
    if not data.holdout or "holdout" not in changed(data):
        return
    said = f"--data.holdout {data.holdout:g}"
    if data.validation is not None:
        yield f"--data.validation {data.validation} are the validation rows, so none are held out; leave out {said}"
    elif data.folds:
        yield f"--data.folds {data.folds} holds out one part of so many; leave out {said}"
    elif data.first is None:
        yield f"the embedded rows have their own validation rows; {said} needs --data.train"
