"""Who is to blame: the first cause, from error files, SLURM, the log and the run's own word."""

import re
from dataclasses import replace

import pytest

from peftkit.config.flags import flags
from peftkit.config.run import Run
from peftkit.config.slurm import Slurm
from peftkit.slurm.blame import REMEDIES, Evidence, blame
from peftkit.slurm.reasons import KNOWN
from peftkit.slurm.states import Job
from peftkit.status import Failure, Status

BOOM = Failure(
    process=3,
    processes=4,
    attempt=0,
    kind="code",
    type="ZeroDivisionError",
    message="division by zero",
    step=7,
    time=20.0,
    host="node2",
)
GONE = Failure(
    process=0, processes=4, attempt=0, kind="peer", type="PeerError", message="process 3 has gone", time=10.0
)
RUNNING = Status("running", step=9, steps=40, checkpoint=5)
OOM = (
    "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0. Some of your processes may have been killed by the"
    " cgroup out-of-memory handler."
)
NODE = "slurmstepd: error: *** STEP 12.0 ON node1 CANCELLED AT 2026-11-25T22:57:20 DUE TO NODE FAILURE, SEE LOG ***"


def job(state: str, **more) -> Job:
    return Job("12", state, raw="12", **more)


def test_the_first_cause_counts_and_not_the_process_that_only_noticed():
    told = blame(Evidence(RUNNING, [GONE, BOOM], job("FAILED", exit_code=143)))
    assert (told.kind, told.failure) == ("code", BOOM)
    assert told.text.startswith("ZeroDivisionError: division by zero (process 3 of 4 on node2, ")
    assert told.text.endswith(", at step 7)") or "at step 7" in told.text


@pytest.mark.parametrize(
    "kind", ["settings", "data", "model", "memory", "disk", "nonfinite", "checkpoint", "export", "code"]
)
def test_an_error_file_names_its_kind_and_there_is_something_to_do(kind):
    told = blame(Evidence(failures=[replace(BOOM, kind=kind)]))
    assert (told.kind, told.remedy) == (kind, REMEDIES[kind])
    assert told.remedy


def test_the_flags_that_are_named_are_flags():
    named = {
        word
        for text in [*REMEDIES.values(), *map(str, KNOWN.values())]
        for word in re.findall(r"--[a-z][\w.-]*\w", text)
    }
    known = {flag.word for flag in flags(Run, {})} | {"--dry-run", "--out"} | set(map(short, Slurm.model_fields))
    assert named <= known


def short(name: str) -> str:
    """As `peftkit submit` knows the section's settings."""
    return f"--{name.replace('_', '-')}"


def test_an_error_counts_more_than_the_time_limit_that_ended_the_rest():
    assert blame(Evidence(RUNNING, [BOOM], job("TIMEOUT"))).kind == "code"


@pytest.mark.parametrize(
    ("evidence", "kind", "text"),
    [
        (Evidence(RUNNING, [], job("TIMEOUT")), "time limit", "step 5 of 40 is saved"),
        (Evidence(replace(RUNNING, checkpoint=None), [], job("TIMEOUT")), "time limit", "before its first checkpoint"),
        (Evidence(RUNNING, [GONE], job("NODE_FAIL", nodes="node[1-2]")), "node", "(node[1-2])"),
        (Evidence(RUNNING, [GONE], job("FAILED", exit_code=1), NODE), "node", "DUE TO NODE FAILURE"),
        (Evidence(RUNNING, [GONE], job("OUT_OF_MEMORY")), "memory", "main memory"),
        (Evidence(RUNNING, [GONE], job("FAILED", exit_code=137), OOM), "memory", "oom-kill event"),
        (Evidence(None, [], job("FAILED", signal=9)), "memory", "signal 9"),
        (Evidence(RUNNING, [], job("CANCELLED", reason="by 1000")), "cancelled", "by 1000; step 5 of 40"),
        (Evidence(RUNNING, [], job("PREEMPTED")), "preempted", "higher priority"),
        (Evidence(None, [], job("FAILED", reason="BadConstraints", signal=1)), "settings", "no node of the cluster"),
        (Evidence(replace(RUNNING, state="stopped", reason="USR1"), [], job("FAILED", exit_code=75)), "stopped", "USR1; step 5"),
        (Evidence(replace(RUNNING, state="failed", reason="it fell over"), [], None), "code", "it fell over"),
        (Evidence(RUNNING, [GONE, replace(GONE, process=1, time=11.0)], None), "peer", "processes 2, 3 of 4 went without a word"),
        (Evidence(None, [], job("FAILED", exit_code=4)), "code", "exit code 4"),
        (Evidence(), "unknown", "nothing says why"),
    ],
)  # fmt: skip
def test_without_an_error_file_of_its_own(evidence, kind, text):
    told = blame(evidence)
    assert (told.kind, text in told.text) == (kind, True), told


@pytest.mark.parametrize(
    ("log", "code", "kind"),
    [
        ("0: peftkit: wrong settings: --stpes is no setting; the nearest is --steps\n", 2, "settings"),
        ("peftkit: error: rows.jsonl has no column text\n1: [process 1] peftkit: error: later\n", 2, "data"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n", 1, "memory"),
    ],
)
def test_what_is_said_before_there_is_a_status(log, code, kind):
    told = blame(Evidence(job=job("FAILED", exit_code=code), log=f"loading\n{log}"))
    assert told.kind == kind
    assert "later" not in told.text


def test_several_problems_are_all_told():
    log = "0: peftkit: 2 wrong settings:\n0:   • --stpes is no setting\n0:   • --seed takes a number\n"
    told = blame(Evidence(job=job("FAILED", exit_code=2), log=log))
    assert (told.kind, told.text) == ("settings", "--stpes is no setting; --seed takes a number")


def test_words_of_the_data_are_no_evidence():
    """A log may quote anything; only what SLURM's own processes say of memory and nodes counts."""
    log = "row 7: 'Out Of Memory' is the label\nhow to handle NODE FAILURE, oom-kill and DUE TO TIME LIMIT\n"
    assert blame(Evidence(job=job("FAILED", exit_code=1), log=log)).kind == "code"


def test_a_long_message_is_told_by_its_first_line():
    told = blame(Evidence(failures=[replace(BOOM, message="\n\nfirst " + "x" * 2000 + "\nsecond")]))
    assert "second" not in told.text
    assert len(told.text) < 800
