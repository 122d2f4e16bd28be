"""Rows from wherever they lie; an error names the file and the line, and never says what stands in it.

.jsonl .ndjson   an object a line              .txt              a row a line (column `text`), blank lines left out
.json            a list of objects,            .parquet .arrow   a row a row; .feather too
                 {"data": [...]}, or SQuAD's   .conll .bio .iob  a word a line (columns `tokens`, `tags`)
.csv .tsv        a header line, then rows      ... .gz .bz2 .xz .zst .zip   the text formats, compressed
FOLDER           images, sounds or texts by class, data files of one format, or what `datasets` saved; FOLDER:SPLIT
'data/*.jsonl'   several files, after one another
https://...      any file system that fsspec knows
ORG/NAME         on the hub; ORG/NAME/CONFIG names one of its configurations, ORG/NAME:SPLIT a split of it
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from peftkit.cache import cache_root
from peftkit.data.sources import digests, files, folders, hub, remote
from peftkit.data.sources.spill import collect
from peftkit.data.sources.table import Source, Table
from peftkit.errors import DataError

__all__ = ["Table", "digest", "read"]


def read(source: str, limit: int | None = None, split: str = "train", cache: Path | None = None) -> Table:
    """The first `limit` rows. `split` is what a hub name or a folder with several splits means if it names none.

    Rows that are too many for memory are laid out in `cache` (see `peftkit.cache.cache_root`).
    """
    root = cache_root(cache)
    with _told(source):
        found = find(source, split, root)
        table = collect(found, limit, root)
    if not table.rows:
        raise DataError(f"{table.name} is empty: it has no rows")
    return table


def digest(source: str, split: str = "train", cache: Path | None = None) -> str:
    """What the rows are, in letters: of files their bytes, of a hub data set its fingerprint."""
    root = cache_root(cache)
    with _told(source):
        return find(source, split, root).digest(root)


def find(source: str, split: str, root: Path) -> Source:
    """What `source` names: a URL, a file, a folder, several files, or a data set on the hub."""
    media = root / "media"
    if not source.strip():
        raise DataError("the name of the rows is empty; name a file, a folder, a URL or a data set of the hub")
    if remote.URL.match(source) and not source.startswith("file://"):
        return _fetched(source, remote.fetch(source, root), media)
    path = Path(url2pathname(urlsplit(source).path) if source.startswith("file://") else source).expanduser()
    folder, _, named = source.rpartition(":")
    if path.is_dir():
        return folders.find(path, split, media)
    if path.exists():
        return files.one(path, media)
    if folder and Path(folder).expanduser().is_dir():
        return folders.find(Path(folder).expanduser(), named, media)
    if glob.has_magic(source) and not hub.HUB.fullmatch(source):  # a split of the hub has brackets too: [:10%]
        return _matching(path, media)
    return _on_hub(source, path, split, media)


def _fetched(source: str, fetched: dict[str, Path], media: Path) -> Source:
    if len(fetched) == 1:
        return files.one(next(iter(fetched.values())), media)
    return files.several(remote.shown(source), fetched, media)


def _matching(path: Path, media: Path) -> Source:
    paths = sorted(Path(found) for found in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute patterns too
    data = [found for found in paths if found.is_file()]
    if not data:
        raise DataError(f"{path} matches no file")
    base = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
    return files.several(str(path), digests.below(base, data), media)


def _on_hub(source: str, path: Path, split: str, media: Path) -> Source:
    near = _near(path)
    if near or files.looks_like_data(path):
        raise DataError(f"there is no file {source}{near}")
    return hub.on_hub(source, split, media)


def _near(path: Path) -> str:
    """Files of data in the same folder whose names are near."""
    folder = path.parent
    names = [entry.name for entry in folder.iterdir() if files.looks_like_data(entry)] if folder.is_dir() else []
    matches = get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(str(folder / name) for name in matches)}?)" if matches else ""


@contextmanager
def _told(source: str) -> Iterator[None]:
    """What the operating system refuses, in a sentence."""
    try:
        yield
    except PermissionError as problem:
        place = problem.filename or source
        raise DataError(f"{place} may not be read: its permissions, or those of its folder, forbid it") from None
    except OSError as problem:
        raise DataError(f"{problem.filename or source} cannot be read: {problem.strerror or problem}") from None
