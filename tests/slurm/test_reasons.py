"""Why a job waits: each reason in words, and which of them mean that it will never start."""

from pathlib import Path

import pytest

from peftkit.slurm.reasons import KNOWN, never_starts, parents, span, why
from peftkit.slurm.states import Job, moment, read_squeue

RECORDED = Path(__file__).parent / "recorded"
JOBS = {job.id: job for job in read_squeue((RECORDED / "squeue.txt").read_text())}
"""Jobs of a real SLURM; of one that was requeued the last line counts."""
LIMITED = {job.id: job for job in read_squeue((RECORDED / "limits.txt").read_text())}
"""Jobs under limits of a quality of service, where accounts are kept in a database."""
REASONS = (RECORDED / "reasons.txt").read_text().split()
"""All words of Slurm 22.05 for limits of accounts and qualities of service."""


@pytest.mark.parametrize(
    ("job", "text", "way_out", "ends"),
    [
        ("647482", "other jobs come before it", "shorter --time", "alone"),
        ("647449", "more nodes than the partition has or allows", "fewer --nodes", "never"),
        ("647450", "more time than the partition allows", "a shorter --time", "never"),
        ("647452", "the partition starts nothing now", "another --partition", "by someone"),
        ("647447", "it is held", "scontrol release 647447", "by someone"),
        ("647445", "it needs job 647443, which did not succeed", "cancel it", "never"),
        ("647477", "it begins when job 647476 has succeeded", "", "alone"),
        ("647485", "down, drained or reserved (node2)", "--slurm.exclude", "by someone"),
        ("647481", "nodes that it needs are down, drained or kept for jobs before it", "sinfo -R", "alone"),
    ],
)
def test_recorded_jobs(job, text, way_out, ends):
    told = why(JOBS[job])
    assert (text in told.text, way_out in told.way_out, told.ends) == (True, True, ends)


def test_a_requeued_job_waits_for_its_credential_and_how_long_is_told():
    job = JOBS["647480"]
    told = why(job, now=moment("2026-11-25T23:05:19"))
    assert "put back into the queue" in told.text
    assert "4 s more" in told.text
    assert "scontrol update jobid=647480 starttime=now" in told.way_out


def test_a_job_that_was_asked_to_begin_later_says_when():
    assert "in 1 h 0 min" in why(JOBS["647446"], now=moment("2026-11-25T22:57:21")).text


@pytest.mark.parametrize("job", ["647449", "647450", "647445", "647476", "647454"])
def test_what_never_starts(job):
    assert never_starts(JOBS[job])


@pytest.mark.parametrize("job", ["647482", "647446", "647447", "647477", "647480", "647439", "647440"])
def test_what_may_start_or_has_ended_is_left_alone(job):
    assert never_starts(JOBS[job]) is None


def test_what_is_in_the_way_in_one_of_several_partitions_need_not_be_in_another():
    over = Job("3", "PENDING", "PartitionTimeLimit")
    assert never_starts(over) and not never_starts(over, several=True)
    assert never_starts(Job("3", "PENDING", "BadConstraints"), several=True)


def test_a_dependency_that_failed_is_seen_before_the_scheduler_says_so():
    assert never_starts(Job("3", "PENDING", "Dependency", dependency="afterok:1(unfulfilled),afterok:2_4(failed)"))


@pytest.mark.parametrize("word", REASONS)
def test_every_limit_has_words(word):
    told = why(Job("1", "PENDING", word))
    assert not told.text.startswith("SLURM says")
    assert told.way_out


@pytest.mark.parametrize(
    ("word", "text", "ends"),
    [
        ("QOSMaxNodePerUserLimit", "as much is in use as the quality of service's limit allows (nodes)", "alone"),
        ("AssocGrpGRES", "as much is in use as the account's limit allows (GPUs)", "alone"),
        ("AssocMaxJobsLimit", "(running jobs)", "alone"),
        ("QOSMaxGRESPerJob", "it asks for more GPUs than the quality of service's limit for one job", "never"),
        ("QOSMaxWallDurationPerJobLimit", "it asks for more time than", "never"),
        ("AssocGrpGRESMinutes", "the account's budget of minutes of use is used up", "by someone"),
        ("AssocGrpCPURunMinutesLimit", "CPU minutes that running jobs may still use", "alone"),
        ("QOSMinGRES", "below the quality of service's minimum (GPUs)", "never"),
    ],
)
def test_limits(word, text, ends):
    told = why(Job("1", "PENDING", word))
    assert (text in told.text, told.ends) == (True, ends)


@pytest.mark.parametrize(
    ("job", "text", "ends"),
    [
        ("651560", "as much is in use as the quality of service's limit allows (running jobs)", "alone"),
        ("651564", "as much is in use as the quality of service's limit allows (nodes)", "alone"),
        ("651565", "it asks for more time than the quality of service's limit for one job", "never"),
    ],
)
def test_recorded_limits(job, text, ends):
    told = why(LIMITED[job])
    assert (told.text, told.ends) == (text, ends)


def test_an_unknown_reason_is_told_as_it_is():
    assert why(Job("1", "PENDING", "MoonInTheWrongPhase")).text == "SLURM says MoonInTheWrongPhase"
    assert why(Job("1", "PENDING")).text == "not looked at yet"


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_what_does_not_end_alone_has_a_way_out(known):
    assert known.way_out or known.ends == "alone"


@pytest.mark.parametrize("word", ["launch failed requeued held", "launch_failed_requeued_held"])
def test_a_phrase_is_read_as_squeue_and_as_scontrol_write_it(word):
    assert "scontrol release 7" in why(Job("7", "PENDING", word)).way_out


def test_parents():
    told = "afterok:12(failed),afterok:13_*(unfulfilled)?afterany:14_2+5(failed)"
    assert parents(told) == ["12", "13", "14_2"]
    assert parents(told, failed=True) == ["12", "14_2"]


@pytest.mark.parametrize(
    ("value", "text"), [(-4, "0 s"), (119, "119 s"), (600, "10 min"), (7500, "2 h 5 min"), (200000, "2 d 7 h")]
)
def test_spans(value, text):
    assert span(value) == text
