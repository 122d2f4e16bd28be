"""The script: equal to the golden one, whole for bash and SLURM, and harmless whatever the settings hold.

python -m tests.slurm.test_script            # writes launch/train.sbatch anew
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from peftkit.config.slurm import Slurm
from peftkit.run_folder import RunFolder
from peftkit.slurm.script import Place, sbatch_script
from tests.slurm.cluster import Cluster

GOLDEN = Path(__file__).parents[2] / "launch" / "train.sbatch"
PROJECT = Path("/path/to/project")
EVIL = "a 'b' \"c\" $(touch evil) `touch evil` ; touch evil; # & | > < * ? ~ % %j \\ é"


def golden() -> str:
    return sbatch_script(Slurm(), Place(PROJECT / "runs/NAME", PROJECT))


def test_the_default_is_the_golden_one() -> None:
    assert GOLDEN.read_text() == golden(), "python -m tests.slurm.test_script writes it anew"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"modules": ["cuda/12.4", "gcc"], "conda": "tune", "setup": ["ulimit -l unlimited"]},
        {"venv": "/home/me/my env", "environment": {"NCCL_DEBUG": "INFO", "ODD": "a 'b' $HOME"}},
        {"container": "/images/peftkit.sif", "mounts": ["/data", "/scratch:/tmp"]},
        {"container": "docker://org/image:1", "container_kind": "pyxis", "mounts": ["/data"], "gpus_per_node": 0},
    ],
)
def test_bash_can_read_it(settings: dict[str, object]) -> None:
    text = sbatch_script(Slurm.model_validate(settings), Place(PROJECT / "runs/NAME", PROJECT))
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("said", "expected"), [("2026-11-26T01:00:00", True), ("", False), ("Unknown", False), ("40:10", False)]
)
def test_only_a_moment_is_a_deadline(said: str, expected: bool) -> None:
    (lines,) = re.findall(r"^END=.*\n.*PEFTKIT_END_TIME; fi\n", golden(), re.M)
    job = f"job() {{ echo $SLURM_TIME_FORMAT >&2; printf %s '{said}' | grep .; }}"
    script = f"set -euo pipefail\n{job}\n{lines}printenv PEFTKIT_END_TIME || true\n"
    done = subprocess.run(["bash", "-c", script], text=True, capture_output=True, check=True)
    assert (done.stdout.strip().isdigit(), done.stderr) == (expected, "standard\n")


def option(text: str, name: str) -> str | None:
    """What follows `#SBATCH --name`."""
    lines = [
        line.removeprefix(f"#SBATCH --{name}") for line in text.splitlines() if line.startswith(f"#SBATCH --{name}")
    ]
    return lines[0].removeprefix("=") if lines else None


def test_gpus_are_asked_for_by_node_and_never_by_task() -> None:
    text = sbatch_script(Slurm(nodes=2, gpus_per_node=8, gpu_type="h100", time="1d12h"), Place(PROJECT / "r", PROJECT))
    assert option(text, "gpus-per-node") == "h100:8"
    assert (option(text, "nodes"), option(text, "ntasks-per-node"), option(text, "cpus-per-task")) == ("2", "1", "32")
    assert option(text, "time") == "1-12:00:00"
    assert "gpus-per-task" not in text and "--ntasks=8" not in text


def test_what_makes_a_job_go_on_is_always_there() -> None:
    text = sbatch_script(Slurm(max_requeues=0, signal_seconds=90), Place(PROJECT / "r", PROJECT))
    assert option(text, "requeue") == "" and option(text, "open-mode") == "append"
    assert option(text, "signal") == "B:USR1@90"


def test_only_named_variables_go_along() -> None:
    text = sbatch_script(Slurm(keep=["HF_TOKEN"], environment={"A": "b c"}), Place(PROJECT / "r", PROJECT))
    assert option(text, "export") == "HF_TOKEN" and "export A='b c'" in text
    assert option(sbatch_script(Slurm(keep=[]), Place(PROJECT / "r", PROJECT)), "export") == "NONE"


def test_a_container_is_told_every_variable() -> None:
    settings = Slurm(container="i.sqsh", container_kind="pyxis", keep=["HF_HOME"], environment={"A": "b"})
    text = sbatch_script(settings, Place(PROJECT / "r", PROJECT))
    (named,) = [word for word in text.split() if word.startswith("--container-env=")]
    assert {"A", "HF_HOME", "PEFTKIT_ATTEMPT", "PEFTKIT_END_TIME"} <= set(
        named.removeprefix("--container-env=").strip(")").split(",")
    )


@pytest.mark.slurm
def test_shell_syntax_in_names_and_paths_does_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Really submitted: the job, its log and its variables are called so, and nothing else happens."""
    path = EVIL.replace("/", "").replace("\\ ", "")
    folder = RunFolder(tmp_path / path)
    folder.slurm.mkdir(parents=True)
    settings = Slurm(
        gpus_per_node=1,
        cpus_per_task=1,
        job_name=EVIL,
        environment={"EVIL": EVIL},
        setup=['printf %s "$EVIL" >said', "exit 0"],
        sbatch=[f"--wckey={EVIL}"],
    )
    folder.script.write_text(sbatch_script(settings, Place(folder.path, tmp_path / path)))
    job = cluster.submit(folder.script)
    assert cluster.wait(job)["JobState"] == "COMPLETED"
    assert (folder.path / "said").read_text() == EVIL
    assert folder.job_log(job).is_file(), sorted(folder.slurm.iterdir())
    assert cluster.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%j").stdout.strip() == EVIL
    assert not list(tmp_path.rglob("evil*"))


if __name__ == "__main__":
    GOLDEN.write_text(golden())
    sys.stdout.write(f"wrote {GOLDEN}\n")
