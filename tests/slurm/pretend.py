"""What a training shows of itself, without training: `python -m tests.slurm.pretend RUN STEPS [SECONDS] [FAILS_AT]`.

It writes RUN/status.json step by step, saves and stops for RUN/stop, and fails with an error file, as a training does; so tests
of what goes on around trainings wait for none. `script(RUN, ...)` is a job that does this and requeues itself when it stopped.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from peftkit.run_folder import RunFolder
from peftkit.slurm.ask import Said
from peftkit.slurm.ledger import Entry, enter
from peftkit.status import Failure, Status, read_status, write_failure, write_status
from tests.launch import ROOT
from tests.slurm.cluster import Cluster


def main(run: str, steps: str, seconds: str = "0.1", fails_at: str = "0") -> int:
    folder, total, attempt = RunFolder(Path(run)), int(steps), int(os.environ.get("SLURM_RESTART_COUNT", 0))
    before = read_status(folder.status)
    folder.stop.unlink(missing_ok=True)

    def write(state, step: int, reason: str = "") -> None:
        saved = step if state in ("stopped", "done") else before.checkpoint if before else None
        write_status(folder.status, Status(state, attempt, step, total, saved, 1, reason))

    begun = before.checkpoint or 0 if before else 0
    write("starting", begun)
    for step in range(begun + 1, total + 1):
        time.sleep(float(seconds))
        print(f"step {step}/{total}", flush=True)
        if step == int(fails_at):
            write_failure(
                folder, Failure(0, 1, attempt, "data", "DataError", "row 7 has no text", "Traceback ...", step)
            )
            write("failed", step, "row 7 has no text")
            return 2
        if folder.stop.exists():
            write("stopped", step, "it was asked to stop")
            return 75
        write("running", step)
    write("done", total)
    return 0


def submit(cluster: Cluster, run: Path, *words: object, options: tuple[str, ...] = (), **more: str) -> Entry:
    """A job that pretends to train in `run`, and peftkit's note of it."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").touch()
    pretend = shlex.join([sys.executable, "-m", "tests.slurm.pretend", str(run), *map(str, words)])
    (run / "job.sh").write_text(
        f"#!/bin/bash\ncd {shlex.quote(str(ROOT))}\n{pretend}\ncode=$?\n"
        "if [ $code = 75 ] && scontrol requeue $SLURM_JOB_ID; then sleep 60; fi\nexit $code\n"
    )
    log = run / "job.log"
    job = cluster.submit("--requeue", "--open-mode=append", f"--output={log}", *options, run / "job.sh")
    entry = Entry(job, str(run), log=str(log), **more)
    enter(entry)
    return entry


def asking(cluster: Cluster, **more: str) -> Callable[..., Said]:
    """Ask that cluster, with `more` in the environment."""

    def ask(*words: str) -> Said:
        done = cluster.run(*words, **more)
        return Said(done.returncode, done.stdout, done.stdout if done.returncode else "")

    return ask


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
