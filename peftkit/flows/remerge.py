"""`peftkit verify` of what `peftkit merge` wrote: every tensor is made again from base and adapters, and compared bit by bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from peftkit.cache import cache_root, digest
from peftkit.errors import ConfigError, ModelError, PeftkitError
from peftkit.flows.merge import Asked, configuration, copy_readers, planned, reading_of
from peftkit.flows.verify import Check
from peftkit.merging.adapter import read_adapter
from peftkit.merging.base import find_base, read_base
from peftkit.merging.beside import PROVENANCE
from peftkit.merging.plan import FORMATS, Entry, rounded
from peftkit.merging.tensors import Stored, stored_in


def checks(folder: Path, base: str | None, trust: bool) -> Iterator[Check]:
    """Whether base and adapters are those that merge.json names, and the weights what they give.

    `base` is where the base lies now, if not where it lay. ConfigError if merge.json cannot be read.
    """
    try:
        held = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        places = {"base": (Path(base or held["base"]["folder"]), held["base"]["sha256"])}
        places |= {f"adapter {one['folder']}": (Path(one["folder"]), one["sha256"]) for one in held["adapters"]}
        for _, known in places.values():
            dict(known.items())
        asked = _asked(held, find_base(str(places["base"][0]), None), trust)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        raise ConfigError(f"{folder / PROVENANCE} cannot be read, or names what is not here: {problem}") from problem
    places["base"] = (asked.base.folder, places["base"][1])
    sources = [_unchanged(name, place, known) for name, (place, known) in places.items()]
    yield from sources
    if not any(check.problems for check in sources):
        yield _weights(folder, asked)
        yield _readers(folder, asked)


def _asked(held: Mapping[str, Any], base: Path, trust: bool) -> Asked:
    """The merge as merge.json tells it."""
    combine = quantised = None
    if held["combine"]:
        from peftkit.merging.by_peft import Combine

        combine = Combine(**{**held["combine"], "weights": tuple(held["combine"]["weights"])})
    if held["quantized"]:
        from peftkit.merging.nf4 import Quantised

        quantised = Quantised(**held["quantized"])
    adapters = [read_adapter(Path(one["folder"])) for one in held["adapters"]]
    dtype = FORMATS.get(held["dtype"])
    return Asked(read_base(base), adapters, dtype, 0, combine, quantised, reading_of(adapters[0]), trust)


def _unchanged(name: str, place: Path, known: Mapping[str, str]) -> Check:
    root = cache_root(None)
    wrong = [
        f"{place / file} {'changed' if (place / file).is_file() else 'is missing'} since the merge"
        for file, sha256 in known.items()
        if not (place / file).is_file() or digest(place / file, root) != sha256
    ]
    return Check(name, f"{len(known) - len(wrong)} as merged", f"{len(known)} files", tuple(wrong))


def _weights(folder: Path, asked: Asked) -> Check:
    """Every tensor of the merge, made again."""
    try:
        plan, why = planned(asked)
        if plan is None:
            return Check("weights", f"not compared: they were merged in memory ({why})")
        written: dict[str, Stored] = {}
        for file in sorted(folder.glob("model*.safetensors")):
            written |= stored_in(file)
        wrong = [_differs(entry, written.pop(entry.name, None)) for entry in plan.entries]
    except PeftkitError as problem:
        return Check("weights", "unreadable", "", (str(problem),))
    said = [sentence for sentence in wrong if sentence] + [f"{name} is no tensor of the merge" for name in written]
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as problem:
        return Check("weights", "no configuration", "", (f"{folder / 'config.json'} cannot be read: {problem}",))
    expected = configuration(asked, plan)
    named = sorted(config.keys() | expected.keys())
    said += [f"config.json: {name} is another" for name in named if config.get(name) != expected.get(name)]
    count = len(plan.entries)
    same = count - sum(map(bool, wrong))
    return Check("weights", f"{same} bit for bit what base and adapters give", f"{count} tensors", tuple(said))


def _readers(folder: Path, asked: Asked) -> Check:
    """Tokenizer, chat template and what else was copied: the same files, byte for byte."""
    with TemporaryDirectory() as copied:
        copy_readers(asked, Path(copied))
        files = sorted(Path(copied).iterdir())
        wrong = [
            f"{folder / file.name} {'is another' if (folder / file.name).is_file() else 'is missing'}"
            for file in files
            if not (folder / file.name).is_file() or (folder / file.name).read_bytes() != file.read_bytes()
        ]
    return Check("tokenizer, templates", f"{len(files) - len(wrong)} as merged", f"{len(files)} files", tuple(wrong))


def _differs(entry: Entry, stored: Stored | None) -> str:
    """What is wrong with a tensor, in a sentence."""
    if stored is None:
        return f"{entry.name} is missing"
    if (stored.dtype, stored.shape) != (entry.dtype, entry.shape):
        return f"{entry.name} is {list(stored.shape)} in {stored.dtype}, not {list(entry.shape)} in {entry.dtype}"
    if entry.make is not None:
        made = entry.make()
    elif entry.stored is not None:
        made = entry.stored.read()
        made = made if made.dtype == entry.dtype else rounded(made, entry.dtype, entry.name)
    else:
        raise ModelError(f"{entry.name} comes from nowhere")
    return "" if torch.equal(_bits(made), _bits(stored.read())) else f"{stored.file.name}: {entry.name} differs"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
