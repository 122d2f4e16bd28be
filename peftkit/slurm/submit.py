"""A script into the queue, once: who submits again what waits or runs is given the job that is there.

Every submission has a token, which is in RUN/slurm/job.json before sbatch is called and in the queue (as the job's comment) after
it. So a job whose number never arrived, because sbatch gave up waiting or was killed, is found again.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from peftkit.atomic import write_whole
from peftkit.errors import ConfigError, PeftkitError
from peftkit.run_folder import RunFolder
from peftkit.slurm.ask import NOT_THERE, TOO_LATE, Said
from peftkit.slurm.reasons import never_starts
from peftkit.slurm.states import Job, look, mine
from peftkit.slurm.verdict import attempts

MARK = "peftkit:"
"""What begins the comment of a job of ours."""
NUMBER, WORD = re.compile(r"(\d+(_\d+)?)?"), re.compile(r"[\w.-]*")
LEAKS = ("SLURM_", "SBATCH_", "SRUN_", "PMI_", "PMIX_", "OMPI_", "PALS_")
"""Variables of a job from within which another one is submitted: that one would take them for its own."""
STAYS = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")
TRIES = 3
ON_THE_WAY = 10.0
"""Seconds within which a submission that was not answered comes to the queue, if it comes."""
LOOKED_AT = ("Resources", "Priority", "Dependency", "BeginTime", "JobArrayTaskLimit")
"""Reasons of a job that SLURM has looked at and will start; before that it says None."""
VAGUE = "PartitionConfig"
"""What SLURM says of a job before it says which of the partition's limits is in the way."""
REFUSAL_SECONDS = 6.0
"""How long SLURM takes to look at a new job and say that it will never start."""


@dataclass(frozen=True)
class Record:
    """RUN/slurm/job.json."""

    token: str
    job: str = ""
    """The job's number; empty between the decision to submit and sbatch's answer."""
    cluster: str = ""
    submitted: float = 0
    """Seconds since 1970."""
    script: str = ""


def new_token() -> str:
    return secrets.token_hex(6)


def submit(folder: RunFolder, record: Record, send: Callable[[Path], Said] | None = None) -> Record:
    """Put the folder's script into the queue and write down its number. ConfigError if SLURM refuses it.

    Where sbatch does not answer, the job is looked for before it is sent again.
    """
    send = send or sbatch
    write_record(folder, record)
    said = send_once(folder.script, send, lambda: found.array if (found := find(record)) else "")
    if said.code and said.is_away and said.code != NOT_THERE:
        raise PeftkitError(f"SLURM's controller does not answer ({said.complaint}); submit again when it does")
    if said.code:
        raise ConfigError(_refused(said))
    number, cluster = number_in(said)
    record = replace(record, job=number, cluster=cluster)
    write_record(folder, record)
    return record


def send_once(script: Path, send: Callable[[Path], Said], there: Callable[[], str]) -> Said:
    """What sbatch said. After no answer it is sent again only if `there`, the number of its job in the queue, is known to be none.

    `there` raises where the controller is deaf.
    """
    for _ in range(TRIES):
        said = send(script)
        if not said.is_away or said.code == NOT_THERE:
            break
        time.sleep(ON_THE_WAY)
        if job := there():
            return Said(0, job)
    return said


def number_in(said: Said) -> tuple[str, str]:
    """The job's number and its cluster in sbatch's answer. ConfigError if there is none: a site's own sbatch may refuse so."""
    number, _, cluster = (said.out.strip().splitlines() or [""])[-1].partition(";")
    if not number.isdigit():
        heard = number or (said.complaint if said.err.strip() else "nothing")
        raise ConfigError(f"SLURM took no job: sbatch gave no job's number, but said {heard}")
    return number, cluster


def sbatch(script: Path) -> Said:
    """Call sbatch, with nothing in its environment of a job around it."""
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(script)],
            capture_output=True, text=True, errors="replace", timeout=90, env=scrubbed(os.environ), check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return Said(NOT_THERE, err="no sbatch")
    except subprocess.TimeoutExpired:
        return Said(TOO_LATE, err="sbatch gave no answer within 90 s")
    return Said(done.returncode, done.stdout, done.stderr)


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a job around this process has left in it."""
    return {name: value for name, value in environment.items() if name in STAYS or not name.startswith(LEAKS)}


def _refused(said: Said) -> str:
    if said.code == NOT_THERE:
        return "sbatch is not installed on this machine: submit where SLURM is; --dry-run shows the script anywhere"
    complaint = said.complaint.removeprefix("sbatch: error: ")
    hint = next((hint for sign, hint in HINTS.items() if sign in said.err), "")
    return f"SLURM refuses the job: {complaint}{hint}"


HINTS = {
    "Requested node configuration": "; no node has so much: sinfo -o '%P %D %c %m %G' shows what there is",
    "nvalid partition": "; sinfo -s lists the partitions: --partition",
    "Invalid account": "; sacctmgr show associations user=$USER lists yours: --account, --qos",
    "Invalid qos": "; sacctmgr show associations user=$USER lists yours: --qos",
    "time limit": "; sinfo -o '%P %l' shows the partitions' limits: --time",
}
"""What sbatch complains of -> how to find what it would take."""


def find(record: Record, folder: RunFolder | None = None) -> Job | None:
    """The job of this record: by its number, else by its token in the queue or in what a job of the run wrote. None: unknown.

    PeftkitError if nobody is there to ask.
    """
    number = record.job or (_from_attempts(folder, record) if folder else "")
    if number:
        answer = look([number])
        jobs = answer.of(number)
    else:
        answer = mine(getpass.getuser())
        jobs = [job for job in answer.jobs.values() if job.comment == f"{MARK}{record.token}"]
    if not answer.heard:
        raise PeftkitError(
            f"SLURM's controller does not answer ({answer.problem}), so it is not known whether the run has a job"
        )
    return jobs[-1] if jobs else None


def _from_attempts(folder: RunFolder, record: Record) -> str:
    """The number of a job that has begun since, although its submission was never answered."""
    rows = [row for row in attempts(folder) if row["event"] == "begin" and row.get("time", 0) >= record.submitted]
    return str(rows[-1]["job"]) if rows else ""


def refusal(job: str, partition: str | None = None, seconds: float = REFUSAL_SECONDS) -> str:
    """Why the job will never start as it was asked for; nothing if SLURM has said no such thing within that time."""
    several = "," in (partition or "")
    end, told = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        for found in look([job]).of(job):
            if why := never_starts(found, several):
                told = str(why)
                if why.reason != VAGUE:
                    return told
            elif found.phase != "waiting" or found.reason in LOOKED_AT:
                return ""
        time.sleep(0.3)
    return told


def cancel(job: str) -> None:
    subprocess.run(["scancel", job], capture_output=True, timeout=60, check=False)


def read_record(folder: RunFolder) -> Record | None:
    """What was last submitted of this run, if anything was."""
    try:
        told = json.loads(folder.job.read_text(encoding="utf-8"))
        record = Record(**{name: told[name] for name in asdict(Record("")) if name in told})
        # It becomes a word of scancel's, to which `--user=me` would be every job that there is.
        return record if NUMBER.fullmatch(record.job) and WORD.fullmatch(f"{record.cluster}{record.token}") else None
    except (OSError, ValueError, TypeError):
        return None


def write_record(folder: RunFolder, record: Record) -> None:
    write_whole(folder.job, json.dumps(asdict(record), indent=1))
