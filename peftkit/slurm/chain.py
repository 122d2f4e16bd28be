"""Commands that follow a run, each in a job of its own that begins when the one before has succeeded.

A training's job ends with 0 only if the run's own status says that it is done, so `afterok` is the right thing to wait for.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from peftkit.config.slurm import Slurm
from peftkit.slurm.script import Place, interpreter, options, software

BODY = """\
set -uo pipefail
RUN=%s
NODES=("${SLURMD_NODENAME:-$(hostname)}")
export RUN OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
[ -d "$RUN" ] || fail "there is no $RUN on this node"
%s
here %s || exit
touch "$RUN/slurm/job-${SLURM_JOB_ID:-}.done"  # SLURM forgets
exit 0
"""


def follower_words(command: str, run: Path) -> list[str]:
    """
    >>> follower_words("eval test.jsonl --by topic", Path("/runs/a")), follower_words("export merged", Path("/runs/a"))
    (['eval', '/runs/a', 'test.jsonl', '--by', 'topic'], ['export', '/runs/a', '--to', 'merged'])
    """
    name, *rest = shlex.split(command)
    named = ["--to"] if name == "export" and rest and not rest[0].startswith("-") else []
    return [name, str(run), *named, *rest]


def follower_script(slurm: Slurm, place: Place, command: str, after: str = "") -> str:
    """The script of one command on one node, with one GPU if the run has any; `after` is the job that has to succeed first."""
    name = f"{slurm.job_name or place.run.name}-{command.split()[0]}"
    alone = slurm.model_copy(update={**ALONE, "gpus_per_node": min(1, slurm.gpus_per_node), "job_name": name})
    asked = [option for option in options(alone, place) if not option.startswith("--signal=")]
    words = shlex.join(["-m", "peftkit", *follower_words(command, place.run)])
    blocks = (
        f"#!/bin/bash\n# peftkit {shlex.join(shlex.split(command))}, when the run is done. Made by `peftkit submit`.",
        "\n".join(f"#SBATCH {option}" for option in (*asked, *([f"--dependency=afterok:{after}"] if after else []))),
        "\n".join(software(alone)),
        BODY % (shlex.quote(str(place.run)), "\n".join(interpreter(alone, place)), words),
    )
    return "\n\n".join(block for block in blocks if block)


ALONE: dict[str, Any] = {"nodes": 1, "processes_per_node": None, "nodelist": None, "exclusive": False, "then": []}
"""What a command by itself asks for instead of what its training did."""
