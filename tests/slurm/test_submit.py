"""Into the queue once: what a shell or a job around it holds stays out, and an answer that never came is looked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peftkit.errors import ConfigError, PeftkitError
from peftkit.run_folder import RunFolder
from peftkit.slurm.ask import NOT_THERE, TOO_LATE, Said
from peftkit.slurm.submit import Record, find, read_record, refusal, sbatch, scrubbed, submit
from tests.slurm.cluster import Cluster

SCRIPT = """\
#!/bin/bash
#SBATCH --comment=peftkit:{mark}
#SBATCH --output={folder}/%j
#SBATCH --export=A
env >{folder}/env
{body}
"""


def folder_with(tmp_path: Path, body: str = "true", mark: str = "abc") -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.slurm.mkdir(parents=True)
    folder.script.write_text(SCRIPT.format(mark=mark, folder=tmp_path, body=body))
    return folder


def test_a_job_around_it_stays_out() -> None:
    shell = {"PATH": "/bin", "SLURM_CONF": "/etc/x", "SLURM_JWT": "y", "HF_TOKEN": "z"}
    job = {
        "SLURM_NNODES": "4",
        "SLURM_CPU_BIND": "none",
        "SBATCH_PARTITION": "p",
        "SRUN_CPUS_PER_TASK": "8",
        "PMI_RANK": "0",
    }
    assert scrubbed({**shell, **job}) == shell


@pytest.mark.parametrize(
    ("err", "said"),
    [
        ("sbatch: error: invalid partition: x\nsbatch: error: Batch job submission failed: Invalid partition name specified",
         "SLURM refuses the job: Batch job submission failed: Invalid partition name specified; sinfo -s lists the partitions"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available",
         "no node has so much: sinfo"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_with_the_way_out(err: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as problem:
        submit(folder_with(tmp_path), Record("abc"), lambda script: Said(1, err=err))
    assert said in str(problem.value)


def test_a_machine_without_sbatch_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sbatch is not installed on this machine.*--dry-run"):
        submit(folder_with(tmp_path), Record("abc"), lambda script: Said(NOT_THERE))


def test_an_answer_without_a_number_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sbatch gave no job's number, but said no budget is left"):
        submit(folder_with(tmp_path), Record("abc"), lambda script: Said(0, err="no budget is left\n"))


def test_a_deaf_controller_never_leads_to_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftkit.slurm.submit.ON_THE_WAY", 0)
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    sent = []
    with pytest.raises(PeftkitError, match="does not answer"):
        submit(folder_with(tmp_path), Record("abc"), lambda script: sent.append(script) or Said(TOO_LATE))
    assert len(sent) == 1


def test_the_record_is_there_before_the_job_is(tmp_path: Path) -> None:
    """A submission that is killed in the middle leaves the token by which its job is found."""
    folder = folder_with(tmp_path)
    seen = []

    def send(script: Path) -> Said:
        seen.append(read_record(folder))
        return Said(0, "12;big\n")

    assert submit(folder, Record("abc"), send) == Record("abc", "12", "big") == read_record(folder)
    assert seen == [Record("abc")]


@pytest.mark.slurm
def test_an_answer_that_never_came_is_looked_for(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch reaches the controller, and its answer is lost: the job is found, not sent again."""
    sent = []

    def send(script: Path) -> Said:
        sent.append(cluster.submit(script))
        return Said(TOO_LATE, err="sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")

    with entered(cluster, tmp_path, monkeypatch):
        found = submit(folder_with(tmp_path, "sleep 600"), Record("abc"), send)
        assert len(sent) == 1 and found.job == sent[0]
        assert find(Record("another")) is None
    cluster.run("scancel", found.job)


@pytest.mark.slurm
def test_a_controller_that_is_away_is_no_answer(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.stop_controller()
    try:
        with entered(cluster, tmp_path, monkeypatch), pytest.raises(PeftkitError, match="controller does not answer"):
            find(Record("abc"))
    finally:
        cluster.start_controller()


@pytest.mark.slurm
def test_nothing_of_a_job_around_it_reaches_the_new_one(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPU_BIND", "quiet,mask_cpu:0x1")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "99")
    monkeypatch.setenv("A", "kept")
    monkeypatch.setenv("B", "left")
    folder = folder_with(tmp_path)
    with entered(cluster, tmp_path, monkeypatch):
        said = sbatch(folder.script)
        assert said.code == 0, said
        assert refusal(said.out.strip()) == ""
    cluster.wait(said.out.strip())
    seen = (tmp_path / "env").read_text()
    assert "A=kept" in seen and "B=left" not in seen
    assert "mask_cpu" not in seen and cluster.job(said.out.strip())["TimeLimit"] == "00:20:00"


@contextmanager
def entered(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SLURM's commands for this process: each goes into the controller's network first."""
    (folder / "bin").mkdir()
    for name in ("sbatch", "squeue", "scontrol", "sacct", "scancel"):
        command = folder / "bin" / name
        command.write_text(f'#!/bin/bash\nexec {" ".join(cluster.entering("control"))} {shutil.which(name)} "$@"\n')
        command.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        yield
