"""Asking a command: what it says, whatever becomes of it, and never through a shell."""

import pytest

from peftkit.slurm.ask import Said, ask


def test_words_reach_the_command_as_they_are():
    assert ask("printf", "%s", "$(touch /tmp/x); `id` | ; 'a b'").out == "$(touch /tmp/x); `id` | ; 'a b'"


def test_a_command_that_is_not_there_and_one_that_never_ends_are_away_and_raise_nothing():
    absent, late = ask("squeue-of-another-age"), ask("sleep", "60", seconds=0.2)
    assert (absent.is_away, "not installed" in absent.complaint) == (True, True)
    assert (late.is_away, "no answer within 0.2 s" in late.complaint) == (True, True)


def test_the_users_own_formats_do_not_reach_it(monkeypatch):
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    told = ask("env").out
    assert "SQUEUE_FORMAT" not in told
    assert "SLURM_TIME_FORMAT" not in told
    assert "SLURM_CONF=/etc/slurm.conf" in told


@pytest.mark.parametrize(
    ("complaint", "away"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", True),
        ("slurm_load_jobs error: Socket timed out on send/recv operation", True),
        ("slurm_load_jobs error: Invalid job id specified", False),
        ("Slurm accounting storage is disabled", False),
    ],
)
def test_no_controller_is_not_no_job(complaint, away):
    assert Said(1, err=complaint).is_away is away
