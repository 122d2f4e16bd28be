"""A run's kept activations (`--strategy.cache_trunk`): of what, where, and hung on its model."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from peftkit.cache import cache_root
from peftkit.data.fingerprint import processor_digest
from peftkit.engine.open import DTYPES
from peftkit.errors import ModelError
from peftkit.flows.job import Job
from peftkit.kernels.attention import attention_of
from peftkit.kernels.shelf import make_room, open_shelf
from peftkit.kernels.trunk import Trunk, find_trunk
from peftkit.kernels.trunk_cache import TrunkCache
from peftkit.strategies.trunk import CachesTrunk
from peftkit.tracking.quiet import speak_at_once

SPLITS = ("train", "validation", "anchor")
"""Those that are run more than once."""


def chosen(job: Job) -> CachesTrunk | None:
    """The strategy, where the run asks for it."""
    strategy = job.run.strategy
    return strategy if isinstance(strategy, CachesTrunk) and strategy.cache_trunk else None


def trunk_of(job: Job) -> Trunk:
    """ModelError where the model has none, or none that can be left out."""
    try:
        return find_trunk(job.model)
    except ModelError as problem:
        raise ModelError(f"--strategy.cache_trunk: {problem}; leave it out") from problem


def hang_cache(job: Job) -> list[TrunkCache]:
    """What was hung on the model: nothing where the run does not ask for it. Batches name their windows from now on."""
    strategy = chosen(job)
    if strategy is None:
        return []
    trunk, processes, dtype = trunk_of(job), job.world.processes, format_of(job, strategy)
    number_windows(job)
    folder = folder_of(job, trunk, dtype)
    if job.world.first:
        make_room(folder.parent, folder, strategy.cache_budget)
    shelf = open_shelf(folder, width_of(trunk), dtype, strategy.cache_budget, processes)
    return [TrunkCache(trunk, shelf, processes, DTYPES[job.precision], speak_at_once).hang(job.model)]


def width_of(trunk: Trunk) -> int:
    """Numbers of one token's hidden state."""
    config: Any = trunk.reader.config
    return int(config.hidden_size)


def number_windows(job: Job) -> None:
    """Each split's windows follow those of the one before."""
    first = 0
    for split in SPLITS:
        store = job.prepared.store(split)
        if store is not None:
            store.first = first
            first += len(store)


def format_of(job: Job, strategy: CachesTrunk) -> torch.dtype:
    """The format on disk."""
    return DTYPES[job.precision if strategy.cache_format == "auto" else strategy.cache_format]


def folder_of(job: Job, trunk: Trunk, dtype: torch.dtype) -> Path:
    """By all that the activations hang on: the base's weights and how it computes, the layers below, the encoded rows."""
    run = job.run
    config: Any = trunk.reader.config
    parts = {
        "base": job.base.fingerprint,
        "config": {name: value for name, value in config.to_dict().items() if name != "_name_or_path"},
        "loading": run.strategy.loading(DTYPES[job.precision]),
        "attention": attention_of(config),
        "trunk": [trunk.path, len(trunk.layers), trunk.whole],
        "precision": [job.precision, str(dtype), job.deepspeed.get("torch_autocast")],
        "rows": job.prepared.digest,
        "anchor": run.eval.anchor and job.prepared.anchor_digest,
        "padding": processor_digest(job.base.processor),
        "libraries": {name: version(name) for name in ("torch", "transformers", "peftkit")},
    }
    name = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return cache_root(run.data.cache) / "trunk" / name


def trunk_words(job: Job) -> list[tuple[str, str]]:
    """For the header: what is run once, how, and where it is kept."""
    strategy = chosen(job)
    if strategy is None:
        return []
    trunk, dtype = trunk_of(job), format_of(job, strategy)
    kind, budget = str(dtype).removeprefix("torch."), strategy.cache_budget / 1e9
    place = folder_of(job, trunk, dtype)
    return [("trunk", f"{trunk.words}, run once a row without dropout; kept in {place}  ({kind}, up to {budget:g} GB)")]
