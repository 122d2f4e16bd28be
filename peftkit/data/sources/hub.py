"""Data sets of the hub, and those that `datasets` saved to disk (save_to_disk)."""

from __future__ import annotations

import hashlib
import re
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from peftkit.data.sources.columnar import ROWS, plain_rows
from peftkit.data.sources.digests import below, together
from peftkit.data.sources.table import Numbered, Source
from peftkit.errors import DataError

HUB = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?(:(?P<split>[\w\[\]%:.+-]+))?")
SAVED = ("dataset_dict.json", "state.json")


def on_hub(source: str, split: str, media: Path) -> Source:
    """The data set of that name on the hub (or in its cache); `split` is meant where the name says none."""
    found = HUB.fullmatch(source)
    if found is None:
        raise DataError(f"there is no file {source}")
    from datasets import load_dataset

    try:
        data = load_dataset(found["name"], found["config"], split=found["split"] or split)
    except Exception as problem:  # the hub's errors come from half a dozen libraries
        raise DataError(f"{source} is no file here, and the hub does not give it: {_first_line(problem)}") from None
    fingerprint = hashlib.sha256(f"{source} {split} {data._fingerprint}".encode()).hexdigest()
    return Source(source, "row", partial(_rows, data, media), lambda _: fingerprint)


def is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED)


def saved(folder: Path, split: str, media: Path) -> Source:
    """A Dataset, or one split of a DatasetDict."""
    if (folder / SAVED[0]).is_file():
        splits = sorted(path.name for path in folder.iterdir() if is_saved(path))
        if split not in splits:
            near = get_close_matches(split, splits, n=1)
            raise DataError(
                f"{folder} has no split {split!r}; it has: {', '.join(splits) or 'none'}."
                f" Name one: {folder}:{near[0] if near else next(iter(splits), 'SPLIT')}"
            )
        folder = folder / split
    return Source(str(folder), "row", partial(_load, folder, media), partial(_digest, folder))


def _load(folder: Path, media: Path) -> Numbered:
    from datasets import load_from_disk

    try:
        data = load_from_disk(str(folder))
    except PermissionError:
        raise
    except Exception as problem:  # of datasets, pyarrow or json
        raise DataError(f"{folder} is no readable data set of save_to_disk: {_first_line(problem)}") from None
    yield from _rows(data, media)


def _rows(data: Any, media: Path) -> Numbered:
    """In Arrow's own format: nothing is decoded, so images and sounds stay bytes."""
    batches = data.with_format("arrow").iter(ROWS)
    yield from enumerate(plain_rows(batches, dict(data.features), media), start=1)


def _digest(folder: Path, root: Path) -> str:
    return together(below(folder, sorted(path for path in folder.iterdir() if path.is_file())), root)


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
