"""Who imports whom: downwards only, light at the door, and each third party behind its own files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    "atomic": 0, "errors": 0, "lazy": 0, "printable": 0, "redact": 0, "registry": 0,
    "config.section": 1, "config.amount": 1, "cache": 1, "run_folder": 1,
    "models.inspect": 2, "status": 2,
    "strategies": 3, "tasks": 3, "metrics": 3, "exporters": 3, "engine.optim": 3, "engine.schedule": 3, "engine.ds_config": 3,
    "config": 4,
    "exporters.runtime": 5, "exporters.graphs": 5, "exporters.tracing": 5, "exporters.llama_cpp": 5,
    "exporters.streamed": 5, "merging": 5,
    "data": 5, "models": 5, "engine": 5, "kernels": 5, "evaluation": 5, "tracking": 5, "slurm": 5, "report": 5,
    "serving": 5,
    "flows": 6,
    "cli": 7, "__main__": 8, "__init__": 8,
}  # fmt: skip
"""An import goes to a lower floor, or stays in its room (`peftkit/<room>/`); the longest name that fits counts.

Inside a function a room's lower files may call its upper ones: `engine.optim` (3) makes what `engine.torch_optim` (5) has.
"""

BESIDE = {
    ("tasks", "metrics"),
    *(("evaluation", room) for room in ("data", "engine", "exporters", "models")),
    *(("exporters", room) for room in ("strategies", "tasks", "merging")),
    ("merging", "models"),
    *(("serving", room) for room in ("data", "evaluation", "exporters", "models")),
    *(("report", room) for room in ("evaluation", "tracking")),
}
"""Rooms of one floor of which the first may look into the second, never the other way round."""

LIGHT = {*sys.stdlib_module_names, "pydantic", "pydantic_core", "yaml", "rich", "peftkit"}
"""What floors 0 to 4 and the command line may import at the top of a file: `--help` takes a fraction of a second."""

BEHIND = {
    "deepspeed": ("engine", "models.load"),
    "peft": ("strategies", "exporters", "merging.by_peft", "evaluation.verify"),
    "bitsandbytes": ("strategies.qlora", "engine.optim", "kernels.lora"),
    "datasets": ("data.sources.hub", "data.sources.columnar"),
    "pyarrow": ("data.sources.columnar",),
    "fsspec": ("data.sources.remote",),
    "zstandard": ("data.sources.opened",),
    "sklearn": ("metrics", "data.split"),
    "scipy": ("metrics", "tasks.sounds", "evaluation.paired"),
    "jinja2": ("report.page", "exporters.llama_cpp.modelfile"),
    "huggingface_hub": ("exporters.metadata", "flows.card", "flows.push", "models.find"),
    "soundfile": ("tasks.sounds",),
    "PIL": ("tasks.pictures",),
    "seqeval": ("metrics.entity_f1",),
    "sacrebleu": ("metrics.bleu",),
    "rouge_score": ("metrics.rouge",),
    "jiwer": ("metrics.error_rate",),
    "evaluate": ("metrics.evaluate",),
    "fastapi": ("serving.app", "serving.openai_routes", "serving.row_routes", "cli.serve"),
    "starlette": ("serving.app", "serving.following", "serving.openai_routes"),
    "uvicorn": ("serving.server", "cli.serve"),
    "prometheus_client": ("serving.meters", "cli.serve"),
    "gguf": ("models", "exporters.llama_cpp"),
    "llama_cpp": ("exporters.llama_cpp.engine",),
    "torchao": ("exporters.quantized",),
    "onnxruntime": ("exporters.graphs",),
    "openvino": ("exporters.graphs",),
    "datasketch": ("data.doctor",),
    "py3langid": ("data.doctor",),
}
"""Each third party that peftkit would want to replace or follow, and the only files that know it."""

HEAVY = ("torch", "transformers", "deepspeed", "peft", "datasets", "accelerate", "bitsandbytes", "sklearn", "numpy")


@dataclass(frozen=True)
class Import:
    """One import statement's target: `peftkit.engine.loop` imports `target` on `line`."""

    module: str
    target: str
    line: int
    at_top: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def test_imports_go_down(house: list[Import]) -> None:
    assert not [str(found) for found in house if own(found.target) and not goes_down(found)]


def test_the_door_is_light(house: list[Import]) -> None:
    assert not [str(found) for found in house if found.at_top and is_light(found.module) and not may_be_light(found)]


def test_third_parties_stay_behind_their_files(house: list[Import]) -> None:
    assert not [str(found) for found in house if not is_behind(found)]


def test_the_command_line_imports_nothing_heavy() -> None:
    script = "import sys, peftkit, peftkit.cli.main, peftkit.cli.train, peftkit.config.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)


def test_every_file_says_what_it_is() -> None:
    sources = {path: path.read_text() for path in sorted((ROOT / "peftkit").rglob("*.py"))}
    silent = [path for path, text in sources.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert not [str(path.relative_to(ROOT)) for path in silent]


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("tasks.chat", "from peftkit.engine import loop", "up"),
        ("tasks.chat", "def late():\n    import peftkit.strategies.lora", "sideways"),
        ("engine.optim", "from peftkit.engine.loop import steps", "up within the room"),
        ("strategies.lora", "import torch", "heavy"),
        ("strategies.lora", "if True:\n    import numpy", "heavy"),
        ("cli.train", "from peftkit.flows.train import train", "heavy at the door"),
        ("tasks.chat", "def late():\n    from deepspeed import zero", "not its file"),
        ("engine.optimism", "import bitsandbytes.nn", "not its file"),
    ],
)
def test_breaking_the_rules_is_seen(module: str, source: str, complaint: str) -> None:
    (found,) = imports(f"peftkit.{module}", source)
    kept = not own(found.target) or goes_down(found)
    light = not (found.at_top and is_light(found.module)) or may_be_light(found)
    assert not (kept and light and is_behind(found)), complaint


def test_a_new_room_needs_a_floor() -> None:
    with pytest.raises(pytest.fail.Exception, match="no floor yet"):
        floor("peftkit.new_room")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine.optim", "def late():\n    import peftkit.engine.torch_optim"),
        ("tasks.chat", "from peftkit.tasks.base import Task"),
        ("strategies.lora", "def late():\n    import torch"),
        ("strategies.lora", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("engine.open", "import deepspeed"),
        ("cli.train", "def run():\n    from peftkit.flows.train import train"),
        ("engine.loop", "import torch.nn"),
    ],
)
def test_keeping_them_is_too(module: str, source: str) -> None:
    for found in imports(f"peftkit.{module}", source):
        assert not own(found.target) or goes_down(found)
        assert not (found.at_top and is_light(found.module)) or may_be_light(found)
        assert is_behind(found)


@pytest.fixture(scope="module")
def house() -> list[Import]:
    """Every import in the package."""
    return [
        found for path in sorted((ROOT / "peftkit").rglob("*.py")) for found in imports(name(path), path.read_text())
    ]


def name(path: Path) -> str:
    """`peftkit/engine/open.py` -> `peftkit.engine.open`; a room's `__init__.py` is the room."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(module: str, source: str) -> Iterator[Import]:
    """What a file imports; `from a import b` is `a.b` where that is a module of ours, else `a`."""
    tree = ast.parse(source)
    top = set(at_top(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno} has a relative import: write it out"
            targets = {deepest(node.module or "", alias.name) for alias in node.names}
        else:
            continue
        yield from (Import(module, target, node.lineno, node in top) for target in sorted(targets))


def at_top(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the file is imported: not in functions, not `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_top(child)


def deepest(module: str, attribute: str) -> str:
    path = ROOT / module.replace(".", "/") / attribute
    return f"{module}.{attribute}" if path.is_dir() or path.with_suffix(".py").exists() else module


def own(target: str) -> bool:
    return target.split(".")[0] == "peftkit"


def goes_down(found: Import) -> bool:
    here, there = floor(found.module), floor(found.target)
    stays = room(found.module) == room(found.target) and (there == here or not found.at_top)
    beside = there == here and (room(found.module), room(found.target)) in BESIDE
    return there < here or stays or beside


def floor(module: str) -> int:
    parts = module.split(".")[1:] or ["__init__"]
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in FLOORS:
            return FLOORS[".".join(parts[:length])]
    pytest.fail(f"{module} has no floor yet: give it one in FLOORS")


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def is_light(module: str) -> bool:
    return floor(module) <= FLOORS["config"] or room(module) in ("cli", "__main__", "__init__")


def may_be_light(found: Import) -> bool:
    if own(found.target):
        return is_light(found.target)
    return found.target.split(".")[0] in LIGHT


def is_behind(found: Import) -> bool:
    inside = found.module.removeprefix("peftkit.")
    files = BEHIND.get(found.target.split(".")[0])
    return files is None or any(inside == file or inside.startswith(f"{file}.") for file in files)
