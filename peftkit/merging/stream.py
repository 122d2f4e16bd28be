"""A plan carried out: shards and their index, one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from peftkit.atomic import synchronise
from peftkit.errors import ExportError
from peftkit.merging.base import INDEX, WHOLE
from peftkit.merging.plan import Entry, rounded
from peftkit.merging.tensors import Shard, stored_in


def write(entries: Iterable[Entry], folder: Path, limit: int, told: Callable[[int], None] = lambda size: None) -> None:
    """Write every entry into shards of at most `limit` bytes (a larger tensor has one alone), fsynced, and their index.

    `told` hears the bytes of each tensor once they are written. ExportError if a tensor is not finite.
    """
    shards = sharded(entries, limit)
    where = {}
    for number, held in enumerate(shards, 1):
        name = WHOLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        with Shard(folder / name, ((entry.name, entry.dtype, entry.shape) for entry in held)) as shard:
            for entry in held:
                put(entry, shard)
                told(entry.size)
        where.update({entry.name: name for entry in held})
    if len(shards) > 1:
        total = sum(entry.size for held in shards for entry in held)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        synchronise(folder / INDEX)


def put(entry: Entry, shard: Shard) -> None:
    if entry.make is not None:
        made = entry.make()
        if tuple(made.shape) != entry.shape or made.dtype != entry.dtype:
            raise ExportError(f"{entry.name} became {list(made.shape)}, {made.dtype}: that is a fault of peftkit's")
        shard.put(made)
    elif entry.stored is not None and entry.stored.dtype == entry.dtype:
        shard.copy(entry.stored)
    elif entry.stored is not None:
        shard.put(rounded(entry.stored.read(), entry.dtype, entry.name))


def sharded(entries: Iterable[Entry], limit: int) -> list[list[Entry]]:
    """The entries in shards, in their order; within one the wider formats come first, so that each lies aligned."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.size > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.size
    return [sorted(held, key=lambda entry: -entry.dtype.itemsize) for held in shards]


def check(entries: Iterable[Entry], folder: Path) -> None:
    """Read the written headers again: every tensor of the plan with its shape and format, and none besides."""
    written = {}
    for file in sorted(folder.glob("model*.safetensors")):
        written.update({name: (stored.dtype, stored.shape) for name, stored in stored_in(file).items()})
    if written != {entry.name: (entry.dtype, entry.shape) for entry in entries}:
        raise ExportError(f"what was written to {folder} is not what was planned; is something else writing there?")
