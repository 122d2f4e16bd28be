"""README.md is right: its tables of choices are the registries', its flags and files exist, its commands are the scripts'.

python -m tests.test_readme       writes the tables anew
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from peftkit.cli.choices import families
from peftkit.cli.help import first_sentence
from peftkit.cli.merge import parser
from peftkit.config.export import Wanted
from peftkit.config.flags import flags
from peftkit.config.run import Run
from peftkit.config.slurm import Slurm
from peftkit.tasks import Task
from tests.matrix import read_outcomes, render

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TABLES = re.compile(
    r"(?<=<!-- choices: written by `python -m tests.test_readme` -->\n).*?(?=<!-- end of choices -->)", re.DOTALL
)
MATRIX = re.compile(
    r"(?<=<!-- matrix: written by `python -m tests.test_readme` -->\n).*?(?=<!-- end of matrix -->)", re.DOTALL
)


def test_it_opens_with_the_two_commands() -> None:
    block = README.read_text().split("```")[1]
    commands = [line.split()[0] for line in block.strip().splitlines()]
    assert commands == ["./launch/quickstart.sh", "./launch/test.sh"]
    assert all(os.access(ROOT / command, os.X_OK) for command in commands)


def test_its_tables_are_the_registries() -> None:
    found = TABLES.search(README.read_text())
    assert found and found[0] == tables(), "run: python -m tests.test_readme"


def test_its_matrix_is_what_was_found() -> None:
    found = MATRIX.search(README.read_text())
    assert found and found[0] == matrix(), "run: python -m tests.test_readme"


def test_its_flags_are_settings() -> None:
    known = {"--" + ".".join(flag.path) for flag in flags(Run, {})}
    known |= {f"--{name}" for name in Run.model_fields} | {"--data.train", "--batch.total"}
    known |= {"--help", "--dry-run", "--config", "--to", "--num_accelerators", "--nproc-per-node", "--strategy.rank"}
    for name in Task.registry:
        known |= {"--" + ".".join(flag.path) for flag in flags(Run, {("task",): Task.registry[name]})}
    known |= {f"--{name.replace('_', '-')}" for name in Slurm.model_fields} | {"--now"}  # of submit and cancel
    known |= {
        "--fix",
        "--json",
        "--by",
        "--bootstrap",
        "--metrics",
        "--measure",
        "--trace",
    }  # of data check, eval, bench
    known |= {"--data", "--html", "--fail-if-worse"}  # of compare
    known |= {"--public", "--replace"}  # of push
    known |= {flag for action in parser()._actions for flag in action.option_strings}  # of merge
    known |= {"--enable-lora", "--max-lora-rank", "--lora-modules", "--model-id"}  # of vLLM and TGI
    known |= {"--" + ".".join(flag.path) for flag in flags(Wanted, {})}  # of export
    known |= {"--as", "--out", "--force", "--base", "--rows"}  # of export and verify
    known |= {"--to.method", "--to.outtype"}  # of export
    known |= {"--optm.lr"}  # misspelt, to show what happens
    assert not set(re.findall(r"--[a-z][\w.-]*", README.read_text())) - known


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_files_that_are_named_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"(?<![\w/])(?:peftkit|tests|launch|ds_configs|\.ci)/[\w./-]*\w", text))
    example = {path for path in named if "bitfit" in path}
    assert not [path for path in sorted(named - example) if not (ROOT / path).exists()]


def tables() -> str:
    """A table for each family of choices."""
    blocks = []
    for kind, family in sorted(families().items()):  # not as they happened to be imported
        rows = [(name, first_sentence(family.registry[name].__doc__)) for name in family.registry]
        lines = [f"| `{name}`{' (default)' if name == family.default else ''} | {text} |" for name, text in rows]
        blocks.append("\n".join([f"| {kind} | {first_sentence(family.__doc__)} |", "| --- | --- |", *lines]))
    return "\n" + "\n\n".join(blocks) + "\n\n"


def matrix() -> str:
    """What tests/test_promises.py found of every task with every strategy."""
    return "\n" + render(read_outcomes()) + "\n"


if __name__ == "__main__":
    README.write_text(MATRIX.sub(lambda _: matrix(), TABLES.sub(lambda _: tables(), README.read_text())))
