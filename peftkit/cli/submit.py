"""`peftkit submit`: settings -> a job in SLURM's queue."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from peftkit.config.read import chosen, read, unsaid
from peftkit.config.run import Run
from peftkit.config.settle import Settled, flag_layer
from peftkit.config.slurm import Slurm
from peftkit.config.words import is_flag, split
from peftkit.errors import ConfigError
from peftkit.run_folder import RunFolder

USAGE = """\
peftkit submit --config run.yaml --nodes 2 --gpus-per-node 8 --time 4h --partition gpu
peftkit submit --model ORG/NAME --data F.jsonl --strategy lora --time 90m --dry-run
peftkit submit --config run.yaml --then "eval test.jsonl" "export merged"    jobs that follow when it is done
peftkit submit --config run.yaml --array '{optim.lr: [1e-4, 2e-4], seed: [1, 2]}' --array-limit 2    four runs"""
INTRODUCTION = """\
Every setting of `peftkit train` may be given; those of the section `slurm` have short names here: --nodes is --slurm.nodes.
Defaults of your cluster lie in $PEFTKIT_SITE, or ~/.config/peftkit/slurm.yaml (`slurm: {partition: gpu, account: ...}`), below
--config and flags. --dry-run prints the script and submits nothing; --parsable prints the job's number alone. Submitting a run
again gives the job that it has; after that has failed, a new one goes on from the newest checkpoint."""


def run(words: list[str]) -> int:
    """Read the settings; then submit, or with `--dry-run` show what would be."""
    if {"--help", "-h"} & set(words):
        return _help([word for word in words if word not in ("--help", "-h")])
    dry, terse = "--dry-run" in words, "--parsable" in words
    settings = read_settings([word for word in words if word not in ("--dry-run", "--parsable")])
    if settings.slurm.array:
        from peftkit.flows.array import preview_array as preview
        from peftkit.flows.array import submit_array as submit
    else:
        from peftkit.flows.submit import preview, submit

    if dry:
        sys.stdout.write(preview(settings))
        return 0
    done = submit(settings)
    sys.stdout.write(f"{done.job}\n" if terse else _told(done.how, done.job, done.folder))
    if not terse:
        told = zip(done.then, settings.slurm.then, strict=True)
        sys.stdout.write("".join(f"  then job {job}: peftkit {command}\n" for job, command in told))
    return 0


def read_settings(words: Sequence[str]) -> Run:
    """The run that the words and the site's defaults ask for; a folder that has been submitted says the rest itself."""
    site = ["--config", str(found)] if (found := site_file()) else []
    own = long_names(words)
    asked = [*site, *own]
    out = Settled(Run, [flag_layer(split(asked).flags)]).tree.get("out")
    folder = RunFolder(Path(str(out)))
    if out and folder.config.is_file():
        # What was submitted has the site's defaults of that day; below it, those of today would say nothing.
        return read([*(own if folder.submitted.is_file() else asked), "--resume"])
    if not out or not folder.submitted.is_file():
        return read(asked)
    settings = read(["--config", str(folder.submitted), *own])
    if problems := unsaid(settings, asked, folder.submitted):
        raise ConfigError(problems)
    return settings


def site_file() -> Path | None:
    """The file with the cluster's defaults, if there is one."""
    named = os.environ.get("PEFTKIT_SITE")
    if named and not Path(named).is_file():
        raise ConfigError(f"PEFTKIT_SITE {named} is no file")
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    file = Path(named) if named else settings / "peftkit" / "slurm.yaml"
    return file if file.is_file() else None


def long_names(words: Sequence[str]) -> list[str]:
    """
    >>> long_names(["--gpus-per-node", "8", "--time=4h", "--no-preflight", "--optim.lr", "1e-4"])
    ['--slurm.gpus_per_node', '8', '--slurm.time=4h', '--no-slurm.preflight', '--optim.lr', '1e-4']
    """
    return [_long(word) if is_flag(word) else word for word in words]


def _long(word: str) -> str:
    flag, equals, value = word.partition("=")
    negated = "no-" if flag.startswith("--no-") else ""
    name = flag.removeprefix("--").removeprefix(negated)
    first, dot, rest = name.partition(".")
    known = first.replace("-", "_")
    if known in Slurm.model_fields and known not in Run.model_fields:
        return f"--{negated}slurm.{known}{dot}{rest}{equals}{value}"
    return word


def _told(how: str, job: str, folder: Path) -> str:
    shown = _short(folder)
    if how == "done":
        return f"{shown} is done: nothing was submitted\n"
    begin = (
        f"job {job} of {shown} is there already: nothing was submitted"
        if how == "same"
        else f"job {job} trains {shown}"
    )
    return f"{begin}\n  peftkit watch {shown}    peftkit logs {shown}    peftkit cancel {shown}\n"


def _short(folder: Path) -> Path:
    try:
        return folder.relative_to(Path.cwd())
    except ValueError:
        return folder


def _help(words: Sequence[str]) -> int:
    from peftkit.cli.help import show_settings
    from peftkit.cli.screen import stdout

    stdout().print(INTRODUCTION + "\n\n" + USAGE + "\n", markup=False, soft_wrap=True)
    show_settings(chosen(long_names(words)), only=("slurm",), command="submit")
    return 0
