"""What a cluster is asked for: times as people write them, and every mistake before sbatch is called."""

from __future__ import annotations

import pytest

from peftkit.config.read import load, read, write
from peftkit.config.slurm import Slurm, time_limit
from peftkit.errors import ConfigError


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("4h", "04:00:00"),
        ("90m", "01:30:00"),
        ("1d12h", "1-12:00:00"),
        ("1-12:00:00", "1-12:00:00"),
        ("36:00:00", "1-12:00:00"),
        ("30s", "00:00:30"),
        ("240", "04:00:00"),
        (240, "04:00:00"),
    ],
)
def test_times(said: str | int, meant: str) -> None:
    assert time_limit(said) == meant == time_limit(meant)


@pytest.mark.parametrize("said", ["4:30", "soon", "0", "-5", "4 h", "1.5h", ""])
def test_what_is_no_time_or_two_is_refused(said: str) -> None:
    """4:30 is minutes and seconds to SLURM, hours and minutes to most people."""
    with pytest.raises(ConfigError, match=r"--slurm\.time: takes a time such as 4h.*got"):
        read([f"--slurm.time={said}"])


def test_it_is_written_and_read_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    words = (
        "--slurm.nodes 2 --slurm.time 10h --slurm.environment.NCCL_DEBUG INFO --slurm.modules cuda/12 gcc --slurm.mem 0"
    )
    run = read([*words.split(), "--slurm.setup", "ulimit -l unlimited"])
    file = tmp_path_factory.mktemp("slurm") / "run.yaml"
    file.write_text(write(run))
    assert load(file) == run
    assert run.slurm == Slurm(
        nodes=2,
        time="600",
        environment={"NCCL_DEBUG": "INFO"},
        modules=["cuda/12", "gcc"],
        mem="0",
        setup=["ulimit -l unlimited"],
    )


def test_processes_and_cores_follow_from_gpus() -> None:
    assert (Slurm().processes, Slurm().cores) == (1, 4)
    assert (Slurm(gpus_per_node=8).processes, Slurm(gpus_per_node=8).cores) == (8, 32)
    assert (Slurm(gpus_per_node=0, processes_per_node=2, cpus_per_task=6).cores) == 6


MISTAKES = {
    ("partition=a;b c",): "--slurm.partition 'a;b c' is a word without spaces",
    ("account=--wrap=x",): "--slurm.account '--wrap=x' is a word without spaces that does not begin with a dash",
    ("job_name=a\nb",): "has a line break",
    ("setup=a\rb",): "has a line break",
    ("mem=64GB",): "--slurm.mem takes a number with K, M, G or T behind it",
    ("processes_per_node=2",): "each process needs a GPU of its own",
    ("gpu_type=a100", "gpus_per_node=0"): "--slurm.gpu_type a100 with --slurm.gpus_per_node 0",
    ("conda=a", "container=b.sif"): "--slurm.conda and --slurm.container each bring a Python",
    ("mounts=/data",): "--slurm.mounts is of a container",
    ("environment={A-B: c}",): "'A-B' is no name of a variable",
    ("environment={SLURM_NNODES: '2'}",): "SLURM sets it itself",
    ("environment={HF_TOKEN: x}",): "looks like a secret",
    ("keep=A=b",): "'A=b' is no name of a variable",
    ("sbatch=--gpus-per-task=1",): "a process sees no GPU but its own",
    ("sbatch=-n4",): "each node has one task",
    ("sbatch=--mem=4G",): "ask for --slurm.mem",
    ("sbatch=licenses",): "takes options such as --licenses=x",
    ("time=5m",): "is over before it begins",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_are_named(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as problem:
        read([f"--slurm.{word}" for word in words])
    assert MISTAKES[words] in str(problem.value)


def test_all_of_them_at_once() -> None:
    with pytest.raises(ConfigError) as problem:
        read(["--slurm.mem=x", "--slurm.sbatch=--wrap=x", "--slurm.partition=a b"])
    assert len(problem.value.problems) == 3


def test_a_training_may_be_submitted_otherwise_than_it_began(tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("run")
    (out / "config.yaml").write_text(write(read([f"--out={out}", "--slurm.nodes=2"])))
    assert read([f"--out={out}", "--resume", "--slurm.nodes=3"]).slurm.nodes == 3
