"""Adapters and their base -> one ordinary model: `peftkit merge --base MODEL --adapter A --out FOLDER`."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from peftkit.atomic import put_in_place
from peftkit.cache import cache_root, digest
from peftkit.engine.space import Writing, is_of_disk, lacking, size
from peftkit.errors import ConfigError, DiskError, ModelError
from peftkit.merging import direct, stream
from peftkit.merging.adapter import CONFIG, WEIGHTS, Adapter, needs_base, read_adapter
from peftkit.merging.base import Base, find_base, read_base
from peftkit.merging.beside import PROVENANCE, check_out, copy_beside, synchronise_all, versions, write_json
from peftkit.merging.direct import Beyond
from peftkit.merging.plan import FORMATS, Plan, bytes_of
from peftkit.redact import redact_all
from peftkit.tracking.quiet import chatter_to, terminal

if TYPE_CHECKING:
    from peftkit.exporters.base import Reading
    from peftkit.merging.by_peft import Combine
    from peftkit.merging.nf4 import Quantised


@dataclass(frozen=True)
class Asked:
    """A merge as it was asked for."""

    base: Base
    adapters: list[Adapter]
    dtype: Any
    limit: int
    combine: Combine | None
    quantised: Quantised | None
    reading: Reading | None
    """What peftkit's own export of the adapter says of its base."""
    trust: bool

    @property
    def labels(self) -> dict[int, str]:
        return dict(self.reading.labels) if self.reading else {}


def merge(
    base: str | None, adapters: Sequence[Path], out: Path, *, dtype: str = "auto", max_shard_size: str = "5GB",
    combine: str | None = None, weights: Sequence[float] = (), density: float | None = None, rank: int | None = None,
    seed: int = 0, quantized: str | None = None, revision: str | None = None, trust: bool = False,
) -> Path:  # fmt: skip
    """Write the merged model to the new folder `out`, and return it.

    The folder appears when all is on the disk; on any error, or if the process is killed, there is none under that name.
    `combine` and what follows are PEFT's words for several adapters; `quantized` says that training held the base in 4 bits.
    """
    out = out.resolve()  # `.` has a name, too
    check_out(out)
    asked = read(base, adapters, dtype, max_shard_size, quantized, revision, trust)
    if len(adapters) > 1:
        from peftkit.merging.by_peft import Combine

        how = Combine(combine or "cat", tuple(weights) or (1.0,) * len(adapters), density, rank=rank, seed=seed)
        asked = Asked(**{**vars(asked), "combine": how})
    with told_plainly(out), chatter_to(None):
        told = Console(file=terminal(), highlight=False, soft_wrap=True)
        plan, why = planned(asked)
        for line in lines(asked, plan, why):
            # A name in a downloaded file must not steer the terminal.
            told.print("".join(sign if sign.isprintable() else "?" for sign in line), markup=False)
        with folder_for(out) as partial:
            fill(partial, asked, plan, why)
        told.print(f"merged model: {out}", markup=False)
    return out


def read(
    base: str | None, adapters: Sequence[Path], dtype: str, limit: str, quantized: str | None, revision: str | None, trust: bool
) -> Asked:  # fmt: skip
    held = [read_adapter(found(adapter)) for adapter in adapters]
    named = base or held[0].config.get("base_model_name_or_path")
    if not named or not isinstance(named, str):
        raise ConfigError("--base: the adapter does not say what it stands on; name its base")
    manual = reading_of(held[0])
    how = None
    if quantized or "quant_type" in (manual.strategy if manual else {}):
        from peftkit.merging.nf4 import Quantised

        words = {} if manual is None else {
            "double_quant": manual.strategy.get("double_quant", True), "dtype": manual.dtype, "unquantised": manual.unquantised
        }  # fmt: skip
        how = Quantised(quantized or (manual.strategy["quant_type"] if manual else "nf4"), **words)
    size = bytes_of(limit)
    return Asked(read_base(find_base(named, revision)), held, FORMATS.get(dtype), size, None, how, manual, trust)


def found(adapter: Path) -> Path:
    """A folder, or what the hub's cache has under that name."""
    if adapter.is_dir() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(adapter)):
        return adapter
    from peftkit.models.find import download

    try:
        return download(str(adapter))
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"--adapter {adapter} is no folder here, and cannot be had from the hub: {problem}"
        ) from problem


def reading_of(adapter: Adapter) -> Reading | None:
    """What peftkit's own export says of how the base was loaded."""
    file = adapter.folder / "peftkit.json"
    if not file.is_file():
        return None
    from peftkit.exporters.base import Reading

    try:
        return Reading.from_json(json.loads(file.read_text(encoding="utf-8"))["reading"])
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelError(f"{file} cannot be read: {problem}") from problem


def planned(asked: Asked) -> tuple[Plan | None, str]:
    """The plan of a streamed merge; else none, and why it must be done in memory."""
    if len(asked.adapters) == 1 and asked.quantised is None:
        try:
            return direct.plan(asked.base, asked.adapters[0], asked.dtype), ""
        except Beyond:
            pass
    if stored := asked.base.config.get("quantization_config"):
        raise ModelError(
            f"--base {asked.base.folder} is stored quantised ({stored.get('quant_method', 'in an unknown way')}), and a merge"
            " into rounded weights is another model; name the 16-bit base, and with --quantized nf4 how training held it"
        )
    for adapter in asked.adapters:
        if why := needs_base(adapter.config):
            return None, why
    from peftkit.merging import assemble

    try:
        return assemble.plan(
            asked.base, asked.adapters, asked.dtype, asked.combine, asked.quantised, asked.labels, asked.trust
        ), ""
    except Beyond as problem:
        return None, str(problem)


def fill(folder: Path, asked: Asked, plan: Plan | None, why: str) -> None:
    """Write the weights, then what lies beside them; config.json, without which nothing is a model, comes last."""
    if plan is None:
        from peftkit.merging import in_memory

        if asked.quantised:
            raise ModelError(f"this merge cannot be streamed ({why}), and in memory no 4-bit base is merged")
        in_memory.write(
            asked.base, asked.adapters, asked.dtype, folder, asked.limit, asked.combine, asked.labels, asked.trust
        )
    else:
        room_for(plan.size, folder)
        with bar(plan.size) as told:
            stream.write(plan.entries, folder, asked.limit, told)
        stream.check(plan.entries, folder)
    copy_readers(asked, folder)
    write_json(folder / PROVENANCE, redact_all(provenance(asked, plan, why)))
    if plan is not None:
        write_json(folder / "config.json", configuration(asked, plan))
    synchronise_all(folder)


def copy_readers(asked: Asked, folder: Path) -> None:
    """Copy what reads rows and what writes texts into the folder."""
    copy_beside(asked.base.folder, asked.adapters[0].folder, folder, "auto_map" in asked.base.config)


def configuration(asked: Asked, plan: Plan) -> dict[str, Any]:
    """config.json of a streamed merge."""
    known = asked.reading is not None and asked.reading.padding is not None
    return plan.config | ({"pad_token_id": asked.reading.padding} if known and asked.reading else {})


def lines(asked: Asked, plan: Plan | None, why: str) -> Iterator[str]:
    """What is about to be done."""
    base = asked.base
    yield f"base: {base.folder} ({len(base.tensors)} tensors, {size(base.size)})"
    for number, adapter in enumerate(asked.adapters):
        weight = f", weight {asked.combine.weights[number]:g}" if asked.combine else ""
        yield f"adapter: {adapter.folder} ({adapter.says}{weight})"
    if asked.combine:
        yield f"combined by {asked.combine.method}"
    if plan is None:
        yield f"in memory, not streamed: {why}"
        return
    yield from plan.notes
    yield (
        f"streamed: {plan.changed} tensors change, {len(plan.entries) - plan.changed} stay as they are;"
        f" {size(plan.size)} to write"
    )


def provenance(asked: Asked, plan: Plan | None, why: str) -> dict[str, Any]:
    """merge.json: what was merged, and how."""
    root = cache_root(None)
    return {
        "base": {
            "folder": str(asked.base.folder),
            "sha256": {file.name: digest(file, root) for file in asked.base.files},
        },
        "adapters": [
            {"folder": str(one.folder), "sha256": {name: digest(one.folder / name, root) for name in (CONFIG, WEIGHTS)}}
            for one in asked.adapters
        ],
        "combine": asdict(asked.combine) if asked.combine else None,
        "quantized": asdict(asked.quantised) if asked.quantised else None,
        "dtype": str(asked.dtype).removeprefix("torch.") if asked.dtype else "auto",
        "changed": plan.changed if plan else None,
        "in_memory": why or None,
        "versions": versions(),
    }


@contextmanager
def bar(total: int) -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    console = Console(file=terminal())
    columns = ("merging", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def folder_for(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end; it goes if anything is wrong."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        check_out(out)
        put_in_place(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def room_for(count: int, folder: Path) -> None:
    problem = lacking(folder, Writing(checkpoint=count, checkpoints=1))
    if problem:
        raise DiskError(f"--out {folder.parent}: the merged model takes {size(count)}, and {problem}")


@contextmanager
def told_plainly(out: Path) -> Iterator[None]:
    """A full disk, and a pattern in an adapter's settings that is none, in a sentence each."""
    try:
        yield
    except OSError as problem:
        if not is_of_disk(problem) and problem.errno not in (errno.EACCES, errno.EPERM):
            raise
        raise DiskError(f"--out {out} cannot be written: {os.strerror(problem.errno or 0)}") from problem
    except re.error as problem:
        raise ModelError(f"the adapter's settings hold a pattern that is none: {problem}") from problem
