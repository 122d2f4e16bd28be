"""The script that SLURM runs: a pure function of the settings and of where the run lies.

One launcher a node under srun, which start their processes and meet at an address that all of them can reach. What ends an attempt
is judged by what the run itself wrote (peftkit.slurm.verdict), never by an exit code: srun's is 0 after a node has failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from peftkit.config.slurm import Slurm
from peftkit.run_folder import RunFolder


@dataclass(frozen=True)
class Place:
    """Where a job finds its run; all paths are absolute, and the same on every node."""

    run: Path
    """The run's folder."""
    work: Path
    """The folder that the paths in the settings start from."""
    python: str = "python"
    """The Python that runs peftkit where the settings name none."""
    token: str = ""
    """Tells this submission from every other: squeue shows it as the job's comment."""
    first_attempt: int = 0
    """How often the run was started before, by other jobs."""
    tasks: tuple[tuple[Path, int], ...] = ()
    """Of an array, whose folder `run` is then: each run's own folder and first attempt, by the number of its task."""


def sbatch_script(slurm: Slurm, place: Place, *more: str) -> str:
    """The whole script; `more` are other options of sbatch, such as `--array=0-3`.

    >>> print(sbatch_script(Slurm(nodes=2), Place(Path("/work/runs/a"), Path("/work"))).splitlines()[3])
    #SBATCH --nodes=2
    """
    blocks = (
        "#!/bin/bash\n# Trains a run under SLURM, in as many turns as it takes. Made by `peftkit submit`.",
        "\n".join(f"#SBATCH {option}" for option in (*options(slurm, place), *more)),
        "\n".join(software(slurm)),
        "\n".join(variables(slurm, place)),
        BODY,
    )
    return "\n\n".join(block for block in blocks if block)


def options(slurm: Slurm, place: Place) -> Iterator[str]:
    """What is asked for, as sbatch reads it: quoted as in a shell."""
    folder = RunFolder(Path(str(place.run).replace("%", "%%")))  # in a log's name a % is a pattern
    kind = f"{slurm.gpu_type}:" if slurm.gpu_type else ""
    asked: dict[str, object] = {
        "job-name": slurm.job_name or place.run.name,
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        # Never --gpus-per-task: it hides a node's GPUs from each other.
        "gpus-per-node": f"{kind}{slurm.gpus_per_node}" if slurm.gpus_per_node else None,
        "cpus-per-task": slurm.cores,
        "time": slurm.time,
        "signal": f"B:USR1@{slurm.signal_seconds}",
        "output": folder.job_log("%A_%a" if place.tasks else "%j"),
        "open-mode": "append",
        "chdir": place.work,
        "export": ",".join(slurm.keep) or "NONE",
        "comment": f"peftkit:{place.token}" if place.token else None,
        "mail-user": slurm.mail,
        "mail-type": "END,FAIL" if slurm.mail else None,
    }
    same = ("mem", "partition", "account", "qos", "constraint", "nodelist", "exclude", "reservation")
    asked |= {name: getattr(slurm, name) for name in same}
    yield from (f"--{name}={_quoted(str(value))}" for name, value in asked.items() if value is not None)
    yield "--requeue"
    if slurm.exclusive:
        yield "--exclusive"
    yield from (
        f"{name}{equals}{_quoted(value)}" for name, equals, value in (one.partition("=") for one in slurm.sbatch)
    )


def _quoted(word: str) -> str:
    """As a shell would have it; only that sbatch reads a backslash between quotes as well."""
    return quote(word.replace("\\", "\\\\"))


def software(slurm: Slurm) -> Iterator[str]:
    """Lines that make peftkit's environment on a node; the others inherit it from the first."""
    yield "STOP=; trap STOP=USR1 USR1; trap STOP=TERM TERM  # until there is a training to stop"
    yield 'fail() { echo "peftkit submit: $*" >&2; exit 2; }'
    if slurm.modules:
        yield "command -v module >/dev/null || . /etc/profile"
        yield from (
            f"module load {quote(name)} || fail {quote(f'module load {name} failed')}" for name in slurm.modules
        )
    if slurm.conda:
        yield 'command -v conda >/dev/null || fail "there is no conda on this node; a module or a line of setup may bring it"'
        yield 'eval "$(conda shell.bash hook)"'
        yield f"conda activate {quote(slurm.conda)} || fail {quote(f'there is no conda environment {slurm.conda}')}"
    if slurm.venv:
        activate = quote(f"{slurm.venv}/bin/activate")
        yield f". {activate} || fail {quote(f'there is no virtual environment in {slurm.venv} on this node')}"
    yield from (f"export {name}={quote(value)}" for name, value in slurm.environment.items())
    yield from slurm.setup


def variables(slurm: Slurm, place: Place) -> Iterator[str]:
    """What the body depends on."""
    yield "set -uo pipefail"
    yield from _which(place)
    yield f"PROCESSES={slurm.processes} GPUS={slurm.gpus_per_node}  # on each node"
    yield f"SIGNAL_SECONDS={slurm.signal_seconds} MAX_REQUEUES={slurm.max_requeues} PREFLIGHT={'yes' if slurm.preflight else 'no'}"
    yield from interpreter(slurm, place)


def _which(place: Place) -> Iterator[str]:
    """The run, and the name by which SLURM's commands know the job: the number alone of an array's task may mean them all."""
    if not place.tasks:
        yield f"RUN={quote(str(place.run))} JOB=$SLURM_JOB_ID"
        yield f"FIRST_ATTEMPT={place.first_attempt}  # attempts of earlier jobs"
        return
    yield f"RUNS=({' '.join(quote(str(run)) for run, _ in place.tasks)})"
    yield f"FIRST_ATTEMPTS=({' '.join(str(first) for _, first in place.tasks)})  # attempts of earlier jobs"
    yield "TASK=$SLURM_ARRAY_TASK_ID JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    yield "RUN=${RUNS[TASK]} FIRST_ATTEMPT=${FIRST_ATTEMPTS[TASK]}"
    log = f"{quote(str(place.run))}/slurm/job-$JOB.log"
    yield f'ln {log} "$RUN/slurm/job-$SLURM_JOB_ID.log" 2>/dev/null  # SLURM names no task\'s folder: one file, two names'


def interpreter(slurm: Slurm, place: Place) -> Iterator[str]:
    """How Python is called on the nodes."""
    python = slurm.python or ("python" if slurm.container or slurm.conda or slurm.venv else place.python)
    if slurm.container and slurm.container_kind == "pyxis":
        yield from _pyxis(slurm, quote(python))
        return
    prefix = " ".join(_apptainer(slurm)) + " " if slurm.container else ""
    yield f"PYTHON=({prefix}{quote(python)}) CONTAINER=()"
    yield 'here() { "${PYTHON[@]}" "$@"; }  # one command of peftkit\'s, on the first node'


def _apptainer(slurm: Slurm) -> Iterator[str]:
    yield '"$(command -v apptainer || command -v singularity || echo apptainer)" exec'
    if slurm.gpus_per_node:
        yield "--nv"
    yield '--bind "$RUN" --bind "$PWD" --pwd "$PWD"'
    yield from (f"--bind {quote(mount)}" for mount in slurm.mounts)
    yield quote(slurm.container or "")


def _pyxis(slurm: Slurm, python: str) -> Iterator[str]:
    mounts = "".join(f",{mount if ':' in mount else f'{mount}:{mount}'}" for mount in slurm.mounts)
    # An image's own value of a variable would win over the job's if it were not named here.
    names = ",".join([*OWN_VARIABLES, *slurm.environment, *slurm.keep])
    yield f"PYTHON=({python})"
    yield f'CONTAINER=(--container-image={quote(slurm.container or "")} --container-workdir="$PWD"'
    yield f'    --container-mounts="$RUN:$RUN,$PWD:$PWD"{quote(mounts) if mounts else ""} --container-env={quote(names)})'
    yield 'here() { srun --overlap --nodes=1 --ntasks=1 --nodelist="${NODES[0]}" "${CONTAINER[@]}" "${PYTHON[@]}" "$@"; }'


OWN_VARIABLES = ("RUN", "PEFTKIT_ATTEMPT", "PEFTKIT_END_TIME", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS")

BODY = r"""ATTEMPT=$((FIRST_ATTEMPT + ${SLURM_RESTART_COUNT:-0}))
NODES=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
say() { printf '[%(%F %T)T] job %s, attempt %s: %s\n' -1 "$SLURM_JOB_ID" "$ATTEMPT" "$*"; }
job() { scontrol --oneliner show job "$JOB" | grep -o " $1=[^ ]*" | cut -d= -f2-; }

# Steps get the job's environment as it is here; a job submitted from within another one has that one's bindings.
unset SLURM_EXPORT_ENV "${!SLURM_CPU_BIND@}" "${!SRUN_@}" "${!SBATCH_@}"
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # some versions of srun do not take it from the job
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((SLURM_CPUS_PER_TASK + PROCESSES - 1) / PROCESSES))}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$SIGNAL_SECONDS  # torchrun would end a save after 30 s
export RUN PEFTKIT_ATTEMPT=$ATTEMPT
END=$(SLURM_TIME_FORMAT=standard job EndTime) || END=  # without an answer there is no deadline; to date, nothing is midnight
if [[ $END == ????-*T* ]] && PEFTKIT_END_TIME=$(date -d "$END" +%s); then export PEFTKIT_END_TIME; fi

# A signal becomes a file, on which all processes agree at the end of a step; sent to Python, it would end a worker of its.
# One that a user made (touch RUN/stop) is empty, and holds for the attempt that is to begin.
[ ! -s "$RUN/stop" ] || rm -f "$RUN/stop"
stop() { STOP=$1; say "$1: asking the training to save and end"; [ -e "$RUN/stop" ] || echo "$1" >"$RUN/stop"; }
trap 'stop USR1' USR1
trap 'stop TERM' TERM
[ -z "$STOP" ] || stop "$STOP"

# Wait for srun, which signals do not end; sets CODE.
finish() {
    while :; do
        if [ -z "$STOP" ]; then wait "$1"; else sleep 1; fi
        kill -0 "$1" 2>/dev/null || break
        [ -n "$STOP" ] && too_late || continue
        say "the training does not end, and the time is over: it goes on from its newest checkpoint"
        kill "$1"
    done
    wait "$1"
    CODE=$?
}
too_late() { [ "$(date +%s)" -ge "$((${PEFTKIT_END_TIME:-9999999999} - 20))" ]; }

# Where the nodes meet: by the first one's name, or by SLURM's own address where that name leads nowhere or to the node itself.
address() {
    if [ "${#NODES[@]}" = 1 ]; then
        echo 127.0.0.1
    elif getent ahosts "${NODES[0]}" | grep -qvE '^(127\.|::1 )'; then
        echo "${NODES[0]}"
    else
        scontrol --oneliner show node "${NODES[0]}" | grep -o ' NodeAddr=[^ ]*' | cut -d= -f2
    fi
}

# Nodes that do not answer any more, with commas between them.
lost() {
    local node
    for node in "${NODES[@]}"; do
        timeout 60 srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" true </dev/null >/dev/null 2>&1 || echo "$node" &
    done
    wait
}

# Put the job back into the queue, without the nodes in $1 where the partition has enough others.
again() {
    [ -z "$1" ] || trap '' TERM  # with which SLURM ends this script now: there is more to say first
    if ! scontrol requeue "$JOB"; then
        say "SLURM does not put the job back: peftkit submit --out $RUN goes on"
        exit 75
    fi
    [ -z "$1" ] || without "$1"
    trap 'exit 75' TERM
    sleep 300 &
    wait
    exit 75
}
without() {
    local before all left
    before=$(job ExcNodeList | sed 's/(null)//')
    all=$1${before:+,$before}
    left=$(sinfo --noheader --Node --format=%N --partition="$SLURM_JOB_PARTITION" | sort -u |
        grep -cvxFf <(scontrol show hostnames "$all"))
    [ "$left" -ge "$SLURM_NNODES" ] && scontrol update jobid="$JOB" excnodelist="$all" && say "goes on without $all"
}

ADDRESS=$(address)
PORT=$(here -m peftkit.slurm.port "$SLURM_JOB_ID.$ATTEMPT") || fail "peftkit cannot be started on ${NODES[0]}"
say "begins on ${NODES[*]}, meeting at $ADDRESS:$PORT"
here -m peftkit.slurm.verdict begin "$RUN" "$ATTEMPT" "$SLURM_JOB_ID" "${NODES[@]}"

CODE=0
if [ "$PREFLIGHT" = yes ]; then
    srun --kill-on-bad-exit=1 --export=ALL "${CONTAINER[@]}" "${PYTHON[@]}" -m peftkit.slurm.preflight \
        --run "$RUN" --attempt "$ATTEMPT" --address "$ADDRESS" --port "$PORT" \
        --processes "$PROCESSES" --gpus "$GPUS" "${NODES[@]}" </dev/null &
    finish $!
fi
# A run that has begun has its settings in its folder, with what `auto` came to be. They are named, as whoever submitted it has
# asked for them: what else is in a folder is asked about in a home, which a node or a container may not have.
SETTINGS=(--config "$RUN/slurm/run.yaml")
[ ! "$RUN/config.yaml" -nt "$RUN/slurm/run.yaml" ] || SETTINGS=(--config "$RUN/config.yaml")
if [ "$CODE" = 0 ] && [ -z "$STOP" ]; then
    # The variables of the task are its own: they are filled in there, not here.
    srun --kill-on-bad-exit=1 --label --export=ALL "${CONTAINER[@]}" bash -c '
        address=$1 port=$2 processes=$3 words=$4; shift 4
        settings=("${@:1:words}") python=("${@:words + 1}")
        if [ "$SLURM_NNODES" != 1 ] && [ -z "${GLOO_SOCKET_IFNAME:-}" ] &&
            card=$("${python[@]}" -m peftkit.slurm.network "$address"); then
            export GLOO_SOCKET_IFNAME="$card"
        fi
        exec "${python[@]}" -m torch.distributed.run --nnodes="$SLURM_NNODES" --node-rank="$SLURM_NODEID" \
            --nproc-per-node="$processes" --master-addr="$address" --master-port="$port" --max-restarts=0 \
            -m peftkit train "${settings[@]}" --out "$RUN" --resume
        ' train "$ADDRESS" "$PORT" "$PROCESSES" "${#SETTINGS[@]}" "${SETTINGS[@]}" "${PYTHON[@]}" </dev/null &
    finish $!
fi

LOST=
[ "$CODE" = 0 ] || LOST=$(lost | sort | paste -sd, -)
VERDICT=$(here -m peftkit.slurm.verdict end "$RUN" "$ATTEMPT" "$SLURM_JOB_ID" --code "$CODE" --signal "$STOP" --lost "$LOST" \
    --max-requeues "$MAX_REQUEUES" --state "$(job JobState)")
case "$VERDICT" in
    again) again "$LOST" ;;
    '') exit $((CODE ? CODE : 1)) ;;
    *) exit "$VERDICT" ;;
esac
"""
