"""`peftkit submit` on the command line: short names, the site's defaults, the script that is shown, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from peftkit.cli.main import main
from peftkit.cli.submit import long_names, read_settings
from peftkit.config.read import write
from peftkit.errors import ConfigError
from peftkit.run_folder import RunFolder
from tests.launch import environment
from tests.slurm.test_script import GOLDEN, PROJECT


@pytest.fixture(autouse=True)
def no_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("PEFTKIT_SITE", raising=False)


def test_short_names_stand_for_the_section() -> None:
    said = "--nodes 2 --gpus-per-node=8 --gpus_per_node 8 --no-preflight --environment.A b --model m --optim.lr 1 --batch 4"
    meant = (
        "--slurm.nodes 2 --slurm.gpus_per_node=8 --slurm.gpus_per_node 8 --no-slurm.preflight --slurm.environment.A b"
    )
    assert long_names(said.split()) == [*meant.split(), "--model", "m", "--optim.lr", "1", "--batch", "4"]


def test_the_site_is_below_files_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, own = tmp_path / "config" / "peftkit" / "slurm.yaml", tmp_path / "run.yaml"
    site.parent.mkdir(parents=True)
    site.write_text("slurm: {partition: site, account: site, qos: site}\n")
    own.write_text("slurm: {account: own, qos: own}\n")
    asked = read_settings(["--config", str(own), "--qos", "flag"]).slurm
    assert (asked.partition, asked.account, asked.qos) == ("site", "own", "flag")
    other = tmp_path / "other.yaml"
    other.write_text("slurm: {partition: other}\n")
    monkeypatch.setenv("PEFTKIT_SITE", str(other))
    assert read_settings([]).slurm.partition == "other"
    monkeypatch.setenv("PEFTKIT_SITE", str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"PEFTKIT_SITE .*none\.yaml is no file"):
        read_settings([])


def test_a_dry_run_shows_the_golden_script(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Only where things lie differs from launch/train.sbatch; nothing is written, and no SLURM is asked."""
    words = ["--dry-run", "--out", f"{PROJECT}/runs/NAME", "--python", "python"]
    done = subprocess.run(
        [sys.executable, "-m", "peftkit", "submit", *words],
        capture_output=True, text=True, cwd=tmp_path, env=environment(PATH="/nowhere"), check=True,
    )  # fmt: skip
    assert done.stdout.replace(f"--chdir={tmp_path}\n", f"--chdir={PROJECT}\n") == GOLDEN.read_text()
    assert list(tmp_path.iterdir()) == []


def test_all_mistakes_come_before_slurm_is_asked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert (
        main(["submit", "--data", "./none.jsonl", "--model", "/none", "--mem", "lots", "--nodes", "0", "--nodez", "2"])
        == 2
    )
    said = capfd.readouterr().err
    for part in ("--slurm.nodes takes", "--nodez is no setting", "--slurm.mem takes"):
        assert part in said, said
    assert main(["submit", "--data", "./none.jsonl", "--model", "/none", "--dry-run"]) == 2
    said = capfd.readouterr().err
    assert "--model /none is not there" in said and "--data.train ./none.jsonl is not there" in said


def test_a_machine_without_slurm_is_told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["submit"]) == 2
    assert "sbatch is not installed on this machine" in capfd.readouterr().err


def test_a_folder_that_was_submitted_says_the_rest(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.slurm.mkdir(parents=True)
    folder.submitted.write_text(write(read_settings(["--out", str(folder.path), "--nodes", "4", "--steps", "7"])))
    again = read_settings(["--out", str(folder.path), "--partition", "p"])
    assert (again.slurm.nodes, again.steps, again.slurm.partition) == (4, 7, "p")
    folder.config.write_text(folder.submitted.read_text())
    with pytest.raises(ConfigError, match=r"--optim\.lr 0\.5 differs from"):
        read_settings(["--out", str(folder.path), "--optim.lr", "0.5"])


def test_what_was_submitted_stands_above_the_site(tmp_path: Path) -> None:
    site, folder = tmp_path / "config" / "peftkit" / "slurm.yaml", RunFolder(tmp_path / "run")
    site.parent.mkdir(parents=True)
    site.write_text("slurm: {partition: today, account: us}\n")
    folder.slurm.mkdir(parents=True)
    folder.submitted.write_text(write(read_settings(["--out", str(folder.path), "--partition", "mine"])))
    site.write_text("slurm: {partition: tomorrow, account: them}\n")
    for _ in range(2):
        again = read_settings(["--out", str(folder.path)])
        assert (again.slurm.partition, again.slurm.account) == ("mine", "us")
        folder.config.write_text(folder.submitted.read_text())


def test_help_is_of_the_cluster(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--help"]) == 0
    said = capfd.readouterr().out
    assert "--slurm.gpus_per_node" in said and "PEFTKIT_SITE" in said and "--optim.lr" not in said
