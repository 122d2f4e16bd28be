"""What `--model` names: a folder, a .gguf file, a hub name, or nothing (the demonstration)."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable
from functools import cache as remember
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from peftkit.cache import cache_root
from peftkit.config.sections import Model
from peftkit.errors import ModelError
from peftkit.models.demo import demo_file
from peftkit.models.gguf import convert
from peftkit.registry import did_you_mean

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def find(settings: Model, cache: Path | None = None) -> str:
    """What to give to `from_pretrained`: a folder, or a hub name as it is.

    Files in GGUF are converted once, and the demonstration is fetched once, into the cache.
    """
    root = cache_root(cache)
    if settings.path is None:
        return str(convert(demo_file(root), root))
    path = Path(settings.path).expanduser()
    if path.is_dir():
        return str(_in_folder(path, root))
    if path.is_file() and path.suffix == ".gguf":
        return str(convert(path, root))
    if path.is_file():
        raise ModelError(f"--model {path} is a file; name the folder that it lies in (only .gguf files stand alone)")
    if path.suffix == ".gguf" or not HUB_NAME.fullmatch(settings.path):
        near = did_you_mean(path.name, [entry.name for entry in path.parent.glob("*")])
        raise ModelError(f"--model {settings.path}: there is no such file or folder{near}")
    return settings.path


def hub_words(settings: Model, source: str) -> dict[str, Any]:
    """What `from_pretrained` is told about where `source` comes from; a hub name that cannot be had is a ModelError here."""
    words: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if Path(source).is_dir():
        return words
    if settings.revision and source == settings.path:
        words["revision"] = settings.revision
    cached = isinstance(try_to_load_from_cache(source, "config.json", revision=words.get("revision")), str)
    problem = hub_problem()
    if problem and not cached:
        raise ModelError(
            f"--model {source} is no folder here, and the hub cannot be reached to look for it ({problem});"
            " name a folder, or check the network (HF_ENDPOINT and HF_HUB_OFFLINE are obeyed)"
        )
    return {**words, "local_files_only": bool(problem)}


def download(name: str, revision: str | None = None) -> Path:
    """The folder in the hub's cache that holds a model or an adapter, fetched if the hub can be reached; no pickle is.

    OSError or ValueError if it cannot be had.
    """
    kinds = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]
    return Path(snapshot_download(name, revision=revision, allow_patterns=kinds, local_files_only=bool(hub_problem())))


@remember
def hub_problem() -> str:
    """Why the hub cannot be reached, or nothing. Asked once: the hub's own client tries for half a minute each time."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310  # the user's own endpoint
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
    except urllib.error.HTTPError:
        return ""  # it answered
    except OSError as problem:
        return str(getattr(problem, "reason", problem))
    return ""


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the folder's weights: safetensors, else pickles, which transformers reads as data only."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def check_weights(folder: Path) -> None:
    """Raise ModelError if a weight file is missing, cut short or no safetensors; it reads the files' headers only."""
    files = weight_files(folder)
    if not files:
        raise ModelError(f"--model {folder} holds a configuration but no weights (*.safetensors)")
    for name in _in_index(folder):
        if not (folder / name).exists():
            raise ModelError(f"--model {folder}: {name} is missing, though the index of weights names it")
    for file in files:
        if file.suffix == ".safetensors":
            shapes(file)


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, by name. A file that is cut short or is none is a ModelError."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        size = file.stat().st_size
        raise ModelError(f"{file} is corrupt or cut short ({size:,} bytes: {problem}); fetch it again") from problem


def _in_folder(folder: Path, root: Path) -> Path:
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1 and not weight_files(folder):
        return convert(ggufs[0], root)
    if (folder / "config.json").exists():
        # transformers would put the adapter onto the model without a word.
        if (folder / "adapter_config.json").exists():
            raise ModelError(
                f"--model {folder} holds a model and an adapter (adapter_config.json); move one of them into another folder"
            )
        return folder
    if len(ggufs) > 1:
        raise ModelError(f"--model {folder} holds several models; name one of {_list(file.name for file in ggufs)}")
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"--model {folder} holds an adapter, not a model: merge it into its base first")
    raise ModelError(
        f"--model {folder} has no config.json, so it is no model's folder;"
        f" it holds {_list(entry.name for entry in sorted(folder.iterdir())) or 'nothing'}"
    )


def _in_index(folder: Path) -> set[str]:
    index = folder / "model.safetensors.index.json"
    return set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()


def _list(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:8]) + (" ..." if len(shown) > 8 else "")
