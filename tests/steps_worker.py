"""Trains every case of a file through the real flow, in whatever world it is started in: `steps_worker.py CASES.json OUT`.

A case is a run's settings by name. OUT gets NAME.json (the steps' rows) and NAME.safetensors (the trained weights).
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from peftkit.config.run import Run
from peftkit.engine.checkpoint import Progress
from peftkit.engine.state import capture
from peftkit.engine.world import World, joined
from peftkit.evaluation.score import score
from peftkit.flows.job import make_job
from peftkit.flows.train import all_steps, open_at


def main(cases: Path, out: Path) -> None:
    with joined() as world:
        for name, settings in json.loads(cases.read_text()).items():
            case(name, Run.model_validate(settings), world, out)
            gc.collect()  # a ZeRO-3 case must not leave transformers in its way of loading


def case(name: str, run: Run, world: World, out: Path) -> None:
    job = make_job(run, world)
    engine = open_at(job, 0, None)
    rows = []
    for current, step in all_steps(job, engine, Progress()):
        engine = current
        rows.append(step.row())
    validation = job.prepared.validation
    numbers = score(engine, job.evaluation(validation, None), job.run.task, job.metrics, world) if validation else {}
    weights = capture(engine).weights
    engine.close()
    if world.first:
        save_file(weights, out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps({"steps": rows, "scores": numbers}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
