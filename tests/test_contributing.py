"""CONTRIBUTING.md is right: what it tells a newcomer to write is written, and works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"`((?:peftkit|tests)/[\w/]+\.py)`[^`]*```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the page's example put in as the page says."""
    house = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "peftkit", house / "peftkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "ds_configs", house / "ds_configs")
    (house / "tests/strategies").mkdir(parents=True)
    for name in ("__init__.py", "tiny.py"):
        shutil.copy(ROOT / "tests" / name, house / "tests" / name)
    for path, code in example().items():
        with (house / path).open("a") as file:
            file.write(code)
    return house


def example() -> dict[str, str]:
    return dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()))


def python(house: Path, *words: str) -> str:
    """What `python WORDS` prints in that house, which must be the one that is imported."""
    environment = {**os.environ, "PYTHONPATH": str(house), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *words], cwd=house, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_names_a_file_a_line_and_a_test() -> None:
    line = "peftkit/strategies/__init__.py"
    assert list(example()) == ["peftkit/strategies/bitfit.py", line, "tests/strategies/test_bitfit.py"]
    assert example()[line].count("\n") == 1


def test_its_test_passes(house: Path) -> None:
    assert "2 passed" in python(house, "-m", "pytest", "-q", "tests/strategies/test_bitfit.py")


def test_the_new_choice_is_listed_and_read(house: Path) -> None:
    assert "bitfit" in python(house, "-m", "peftkit", "choices", "strategy")
    read = "from peftkit.config.run import Run; print(Run(strategy={'name': 'bitfit', 'norms': False}).strategy.norms)"
    assert python(house, "-c", read).strip() == "False"


def test_its_code_is_clean(house: Path) -> None:
    for tool in (["check"], ["format", "--check"]):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "ruff",
                *tool,
                "--config",
                str(ROOT / "pyproject.toml"),
                "peftkit/strategies/bitfit.py",
            ],
            cwd=house,
            check=True,
        )


def test_a_package_of_ones_own_adds_it_by_entry_point(tmp_path: Path) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    entry = re.search(r"```toml\n\[project\.entry-points\.\"([\w.]+)\"\]\n(\w+) = \"([\w.]+)\"\n```", page)
    assert entry, "the page shows no entry point"
    group, name, module = entry.groups()
    (tmp_path / "my_package").mkdir()
    (tmp_path / f"{module.replace('.', '/')}.py").write_text(example()["peftkit/strategies/bitfit.py"])
    (tmp_path / "my_package-1.dist-info").mkdir()
    (tmp_path / "my_package-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    (tmp_path / "my_package-1.dist-info/entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
    read = "from peftkit.config.run import Run; print(type(Run(strategy='bitfit').strategy).__module__)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == module, done.stderr


def test_the_groups_of_entry_points_are_all_there() -> None:
    from peftkit.cli.choices import families

    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert {family.registry.group for family in families().values()} == set(re.findall(r"`(peftkit\.[a-z]+s)`", page))
