"""The public names: these, each with a docstring, and nothing heavy behind `import peftkit`."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import peftkit

ROOT = Path(__file__).parents[1]
PUBLIC = {
    "train", "export",
    "Run", "Strategy", "Task", "Metric", "Exporter", "Optimizer", "Schedule",
    "PeftkitError", "ConfigError", "DataError", "ModelError", "CheckpointError", "ExportError",
}  # fmt: skip


def test_these_and_no_others() -> None:
    assert set(peftkit.__all__) == PUBLIC
    assert len(peftkit.__all__) == len(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_says_what_it_is(name: str) -> None:
    found = getattr(peftkit, name)
    # A class without a docstring of its own would show its parent's.
    assert (found.__dict__["__doc__"] if isinstance(found, type) else found.__doc__).strip()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        peftkit.tarin  # noqa: B018


def test_importing_it_takes_no_time() -> None:
    script = "import sys; before = {*sys.modules}; import peftkit; print(*({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded - set(sys.stdlib_module_names) == {"peftkit"}


def test_the_version_is_the_packages() -> None:
    assert peftkit.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
