"""Where a job is: read from what squeue, scontrol and sacct of a real SLURM said, and merged with the run's own word."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from peftkit.slurm.ask import Said
from peftkit.slurm.states import (
    GRACE,
    PHASES,
    Job,
    by_exit,
    look,
    merged,
    mine,
    read_sacct,
    read_scontrol,
    read_squeue,
    seconds,
)
from peftkit.status import Status

RECORDED = Path(__file__).parent / "recorded"
"""Slurm 22.05.8: squeue and scontrol with jobs in many states, `sacct` of a database (slurmdbd on MariaDB), and `sacct -c`
where only a file of finished jobs is kept."""
SQUEUE, SCONTROL, SACCT, SACCT_C = (
    (RECORDED / f"{name}.txt").read_text() for name in ("squeue", "scontrol", "sacct", "sacct-c")
)
UNKNOWN_JOB = Said(1, err="slurm_load_jobs error: Invalid job id specified")
AWAY = Said(1, err="slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
NO_DATABASE = Said(1, err="Slurm accounting storage is disabled")


def said(**answers: Said):
    """SLURM's commands with these answers; `sacct -c` is `completion`."""

    def ask(*words: str) -> Said:
        return answers.get("completion" if "--completion" in words else words[0], Said(127, err="not installed"))

    return ask


def test_squeue_and_scontrol_tell_the_same_of_every_job():
    listed, shown = (
        {job.id: replace(job, source="", left=None) for job in jobs if job.phase == "ended" or "Held" in job.reason}
        for jobs in (read_squeue(SQUEUE), read_scontrol(SCONTROL))
    )
    # A name with `|` in it is no name of peftkit's.
    both = (listed.keys() & shown.keys()) - {"647439"}
    assert len(both) >= 6
    assert {job: listed[job] for job in both} == {job: shown[job] for job in both}


def test_a_complaint_that_is_not_the_controllers_says_nothing_of_a_job():
    odd = Said(1, err="squeue: error: plugin_load: cannot find cli_filter plugin")
    assert not look(["12"], said(squeue=odd, scontrol=odd)).heard
    assert look(["12"], said(squeue=odd, scontrol=UNKNOWN_JOB)).heard
    assert look(["12"], said(squeue=UNKNOWN_JOB)).heard


def test_every_recorded_line_is_a_job_in_a_known_phase():
    for read, text in ((read_squeue, SQUEUE), (read_scontrol, SCONTROL)):
        jobs = list(read(text))
        assert len(jobs) == len([line for line in text.splitlines() if line.strip()])
        assert {job.phase for job in jobs} == {"waiting", "running", "ended"}


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ("647440", {"state": "FAILED", "exit_code": 3, "signal": 0, "nodes": "node1"}),
        ("647441", {"state": "FAILED", "exit_code": 0, "signal": 9}),
        ("647467_2", {"state": "FAILED", "exit_code": 2, "raw": "647467", "array": "647467"}),
        ("647447", {"state": "PENDING", "reason": "JobHeldUser", "starts": None}),
        ("647485", {"reason": "ReqNodeNotAvail, UnavailableNodes:node2"}),
        ("647445", {"dependency": "afterok:647443(failed)"}),
        ("647453", {"left": None}),
        ("647442", {"name": "run ning", "comment": "peftkit /tmp/a b/run", "left": 18 * 60 + 47}),
        ("647472", {"state": "TIMEOUT", "ends": datetime(2026, 11, 25, 22, 59, 18).timestamp()}),
    ],
)
def test_what_squeue_tells(job, told):
    (found,) = [one for one in read_squeue(SQUEUE) if one.id == job]
    assert {name: getattr(found, name) for name in told} == told


def test_a_requeued_job_has_restarts():
    told = [job for job in read_squeue(SQUEUE) if job.id == "647480"]
    assert [(job.state, job.restarts) for job in told] == [("RUNNING", 0), ("PENDING", 1)]


def test_what_sacct_tells():
    jobs = {job.id: job for job in read_sacct(SACCT)}
    assert len(jobs) == len(SACCT.splitlines())
    told = {job: (jobs[job].state, jobs[job].exit_code, jobs[job].signal) for job in jobs}
    assert told["651485"] == ("FAILED", 3, 0)
    assert told["651489"] == ("FAILED", 0, 9)
    assert told["651486_1"] == ("FAILED", 1, 0)
    assert [told[job][0] for job in ("651492", "651493", "651494")] == ["NODE_FAIL", "TIMEOUT", "COMPLETED"]
    assert (jobs["651487"].state, jobs["651487"].reason) == ("CANCELLED", "by 0")
    assert (jobs["651484"].name, jobs["651485"].name, jobs["651486_1"].raw) == ("ok|name", "two words", "651491")


def test_a_database_knows_what_the_controller_has_forgotten():
    ask = said(squeue=UNKNOWN_JOB, scontrol=UNKNOWN_JOB, sacct=Said(0, SACCT))
    assert look(["651493"], ask).jobs["651493"].state == "TIMEOUT"
    assert [job.id for job in look(["651486"], ask).of("651486")] == ["651486_0", "651486_1", "651486_2"]


def test_sacct_names_who_cancelled():
    (job,) = read_sacct("7_1|9|CANCELLED by 1000|0:15|2026-11-25T22:57:20|Unknown|node[1-2]|a|b\n")
    assert (job.id, job.raw, job.state, job.reason, job.signal, job.ends, job.name) == (
        "7_1", "9", "CANCELLED", "by 1000", 15, None, "a|b",
    )  # fmt: skip


@pytest.mark.parametrize("read", [read_squeue, read_scontrol, read_sacct])
@pytest.mark.parametrize(
    "text", ["", "\n\n", "slurm_load_jobs error", "a|b|c", "JobId=x", "|" * 30, "\x00\x01", "=|= =" * 9]
)
def test_what_is_no_job_is_passed_over(read, text):
    assert list(read(text)) == []


def test_a_state_of_another_version_is_unknown_and_no_crash():
    line = next(line for line in SQUEUE.splitlines() if "RUNNING" in line)
    (job,) = read_squeue(line.replace("RUNNING", "COMPLETININVALID"))
    assert (job.phase, merged(job, None).state) == ("unknown", "unknown")


def test_a_job_that_the_controller_does_not_know_is_unknown_and_not_failed():
    answer = look(["99"], said(squeue=UNKNOWN_JOB, scontrol=UNKNOWN_JOB, sacct=NO_DATABASE, completion=Said(0)))
    assert (answer.heard, answer.jobs) == (True, {})


def test_a_controller_that_is_away_was_not_heard():
    answer = look(["99"], said(squeue=AWAY))
    assert (answer.heard, answer.jobs) == (False, {})
    assert "Unable to contact slurm controller" in answer.problem
    assert look(["99"], said()).heard is False


def test_scontrol_is_asked_where_squeue_says_nothing_of_use():
    answer = look(["647440"], said(squeue=Said(0, "an unknown form\n"), scontrol=Said(0, SCONTROL)))
    assert answer.jobs["647440"].source == "scontrol"


def test_the_database_runs_late():
    """Right after a job's end sacct calls it running: believed only where the controller cannot be asked."""
    row = Said(0, "99|99|RUNNING|0:0|2026-11-25T22:57:20|Unknown|node1|x\n")
    forgotten = said(squeue=UNKNOWN_JOB, scontrol=UNKNOWN_JOB, sacct=row)
    assert look(["99"], forgotten).jobs == {}
    assert look(["99"], said(squeue=AWAY, sacct=row)).jobs["99"].phase == "running"


def test_a_file_of_finished_jobs_knows_how_a_forgotten_job_ended():
    answer = look(
        ["647440", "647468", "647442", "647467_1"],
        said(squeue=UNKNOWN_JOB, scontrol=UNKNOWN_JOB, sacct=NO_DATABASE, completion=Said(0, SACCT_C)),
    )
    told = {job.id: (job.state, job.exit_code) for job in answer.jobs.values()}
    # 647468 was requeued once: its last line counts. 647442's name has a space, on which the file's reader stumbles.
    assert told == {"647440": ("FAILED", 3), "647468": ("COMPLETED", 0)}


def test_a_requeued_jobs_first_end_is_not_believed_while_the_controller_is_away():
    assert look(["647471"], said(squeue=AWAY, sacct=NO_DATABASE, completion=Said(0, SACCT_C))).jobs == {}


def test_an_arrays_number_stands_for_all_its_tasks():
    answer = look(["647467"], said(squeue=Said(0, SQUEUE)))
    assert [job.id for job in answer.of("647467")] == ["647467_0", "647467_1", "647467_2"]
    assert [job.id for job in answer.of("647467_1")] == ["647467_1"]


def test_a_users_jobs_are_one_question():
    assert mine("root", said(squeue=Said(0, SQUEUE))).jobs["647480"].restarts == 1
    assert mine("root", said(squeue=AWAY)).heard is False


NOW = 1_000_000.0


def status(state: str, age: float = 0, **more) -> Status:
    return Status(state=state, updated=NOW - age, job="12", **more)


RUNNING, ENDED = Job("12", "RUNNING", raw="12"), Job("12", "FAILED", raw="12", exit_code=1)


@pytest.mark.parametrize(
    ("job", "own", "state"),
    [
        (Job("12", "PENDING", raw="12"), None, "waiting"),
        (Job("12", "PENDING", raw="12", restarts=1), status("stopped"), "waiting"),
        (RUNNING, None, "starting"),
        (RUNNING, status("running"), "running"),
        (RUNNING, status("running", age=9 * GRACE), "running"),
        (replace(RUNNING, restarts=1), status("stopped", attempt=0), "starting"),
        (replace(RUNNING, restarts=1), status("running", attempt=1), "running"),
        (replace(RUNNING, id="13", raw="13"), status("done"), "starting"),
        (Job("12", "COMPLETED", raw="12"), status("done"), "done"),
        (ENDED, status("done"), "done"),
        (Job("12", "COMPLETED", raw="12"), None, "failed"),
        (Job("12", "COMPLETED", raw="12"), status("running"), "failed"),
        (ENDED, status("stopped"), "stopped"),
        (replace(ENDED, restarts=1), status("stopped", attempt=0), "failed"),
        (Job("12", "TIMEOUT", raw="12"), status("running"), "failed"),
        (Job("12", "CANCELLED", raw="12"), status("running"), "cancelled"),
        (Job("12", "CANCELLED", raw="12", restarts=1), status("stopped", attempt=0), "stopped"),
        (Job("12", "CANCELLED", raw="12"), None, "cancelled"),
        (None, None, "unknown"),
        (None, status("running", age=GRACE - 1), "running"),
        (None, status("running", age=GRACE + 1), "unknown"),
        (None, status("failed", age=9 * GRACE), "failed"),
        (None, status("stopped", age=9 * GRACE), "stopped"),
        (Job("12", "A_NEW_WORD"), status("done"), "done"),
    ],
)
def test_one_state_of_the_job_and_the_runs_own_word(job, own, state):
    assert merged(job, own, now=NOW).state == state


def test_attempts_of_the_jobs_before_are_not_this_ones():
    second = replace(RUNNING, restarts=1)
    assert merged(second, status("stopped", attempt=3), first=3).state == "starting"
    assert merged(second, status("running", attempt=4), first=3).state == "running"


@pytest.mark.parametrize(
    ("job", "own", "heard", "over"),
    [
        (RUNNING, status("stopped"), True, False),  # its script may be about to requeue it
        (Job("12", "PENDING", raw="12", restarts=1), status("stopped"), True, False),
        (ENDED, status("stopped"), True, True),
        (Job("12", "CANCELLED", raw="12"), None, True, True),
        (None, status("stopped"), False, False),
        (None, status("failed"), True, True),
        (None, status("done"), False, True),
        (None, status("running"), True, False),
        (None, None, True, False),
    ],
)
def test_when_nothing_more_will_come_of_it(job, own, heard, over):
    assert merged(job, own, heard, now=NOW).is_over is over


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("COMPLETED", "done"),
        ("FAILED", "failed"),
        ("CANCELLED", "cancelled"),
        ("RUNNING", "running"),
        ("PENDING", "waiting"),
    ],
)
def test_a_command_without_a_status_is_known_by_its_exit(word, state):
    assert by_exit(Job("12", word)).state == state
    assert by_exit(None).state == "unknown"


def test_no_state_is_in_two_phases():
    words = [word for phase in PHASES.values() for word in phase.split()]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0:00", 0),
        ("18:47", 1127),
        ("1:00:00", 3600),
        ("2-01:00:00", 176400),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_spans_of_time(text, value):
    assert seconds(text) == value
