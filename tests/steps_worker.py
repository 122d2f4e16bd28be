"""Trains every case of a file through the real flow, in whatever world it is started in: `steps_worker.py CASES.json OUT`.

A case is a run's settings by name. OUT gets NAME.json (the steps' rows, or why it was refused) and NAME.safetensors (the
trained weights).
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from pathlib import Path

from safetensors.torch import save_file

from peftkit.config.run import Run
from peftkit.engine.checkpoint import Progress
from peftkit.engine.open import Engine
from peftkit.engine.state import capture
from peftkit.engine.world import World, joined
from peftkit.errors import PeftkitError
from peftkit.evaluation.score import Split, score
from peftkit.flows.job import Job, make_job
from peftkit.flows.stages import all_steps, join_references, open_at
from peftkit.run_folder import RunFolder


def main(cases: Path, out: Path) -> None:
    with joined() as world:
        gc.freeze()  # what was imported need not be looked through again after every case
        for name, settings in json.loads(cases.read_text()).items():
            try:
                case(name, Run.model_validate(settings), world, out)
            except PeftkitError as problem:  # the same on every process, before any of them waits for another
                (out / f"{name}.json").write_text(json.dumps({"refused": str(problem)}))
            except Exception:
                (out / f"{name}.json").write_text(json.dumps({"failed": traceback.format_exc()}))
            gc.collect()  # a ZeRO-3 case must not leave transformers in its way of loading


def case(name: str, run: Run, world: World, out: Path) -> None:
    job = make_job(run, world)
    engine = open_at(job, 0, None)
    if run.task.reference:
        join_references(job, engine, RunFolder(out / f"{name}-run"), first_time=True)
    rows = []
    for current, step in all_steps(job, engine, Progress()):
        engine = current
        rows.append(step.row())
    numbers = scores(job, engine, world)
    weights = capture(engine).weights
    engine.close()
    if world.first:
        save_file(weights, out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps({"steps": rows, "scores": numbers}))


def scores(job: Job, engine: Engine, world: World) -> dict[str, float]:
    store = job.prepared.validation
    if store is None:
        return {}
    split = Split(store, job.prepared.rows("validation"), job.base.processor)
    batches = job.evaluation(store, None)
    generate = job.run.generate.model_copy(update={"max_new_tokens": 4})
    return score(engine.deepspeed, batches, split, job.run.task, job.metrics, world, generate).numbers


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
