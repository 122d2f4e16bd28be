"""`peftkit serve FOLDER [NAME=FOLDER ...]`: trained models as an HTTP service."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from peftkit.engine.world import World, joined
from peftkit.errors import ConfigError, ExportError
from peftkit.evaluation.certificate import Certificate
from peftkit.exporters.adapter import Adapter, four_bits
from peftkit.exporters.manual import MANUAL
from peftkit.flows.answering import answering
from peftkit.flows.trained import Trained, described, manual_of, open_trained, placed
from peftkit.serving.app import application
from peftkit.serving.gate import Limits
from peftkit.serving.model import Served
from peftkit.serving.server import bound, run
from peftkit.serving.service import service_of
from peftkit.tracking.quiet import chatter_to, terminal

KEY = "PEFTKIT_API_KEY"
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Asked:
    """What is served, and how."""

    folders: Mapping[str, Path]
    """Name -> folder."""
    host: str = "127.0.0.1"
    port: int = 8000
    batch: int = 16
    """Texts or rows that are computed together."""
    window: float = 0.005
    """Seconds that rows wait for others."""
    max_queue: int = 256
    limits: Limits = field(default_factory=Limits)
    grace: int = 30
    checkpoint: str | None = None
    verify: bool = True
    trust: bool = False
    """Allow Python code that comes with a model."""


def serve(asked: Asked, verbose: bool = False) -> None:
    """Serve until asked to stop. Raises before the first request if a model cannot be opened or is not what was certified."""
    key = os.environ.get(KEY) or None
    with joined() as world, chatter_to(None, verbose):
        if world.processes > 1:
            raise ConfigError("peftkit serve runs on one process; start it without a launcher")
        console = Console(file=terminal(), highlight=False, soft_wrap=True)
        listening = bound(asked.host, asked.port)  # before the minutes of loading
        with listening:
            service = service_of(opened(asked, world), asked.limits, asked.max_queue)
            host, port = listening.getsockname()[:2]
            if asked.host not in LOCAL and key is None:
                console.print(f"warning: whoever reaches {asked.host} can use it; set {KEY} to ask for a key")

            def say() -> None:
                for served in service.models.values():
                    console.print(f"serving {served.name} ({served.task.name})")
                console.print(f"at http://{f'[{host}]' if ':' in host else host}:{port}")
                terminal().flush()

            only_here = asked.host in LOCAL
            run(application(service, key, only_here), service, listening, asked.grace, say)


def opened(asked: Asked, world: World) -> list[Served]:
    """The models, adapters of one base on one base, and each of these bases under its own name."""
    if asked.verify:
        for folder in asked.folders.values():
            check(folder)
    served: list[Served] = []
    for base, group in groups(asked):
        if base is not None:
            served += on_one_base(group, asked, world)
        else:
            served += by_themselves(group, asked, world)
    return served


def check(folder: Path) -> None:
    """ExportError if an export's weights are not those that its certificate speaks of; a run's checkpoints are checked anyway."""
    if (folder / MANUAL).is_file():
        try:
            certificate = Certificate.read(folder)
        except ExportError as problem:
            raise ExportError(f"{problem}; export the run again, or serve it unchecked with --no-verify") from None
        if certificate.forced:
            told = f"warning: {folder} was exported with --force, as {'; '.join(certificate.missed)}"
            Console(file=terminal(), highlight=False, soft_wrap=True).print(told)


def groups(asked: Asked) -> list[tuple[Any, dict[str, Path]]]:
    """What adapters have in common, and those that have it; None, and a folder, for each that stands by itself."""
    found: list[tuple[Any, dict[str, Path]]] = []
    for name, folder in asked.folders.items():
        base = base_of_adapter(folder, asked.trust)
        group = next((group for known, group in found if base is not None and known == base), None)
        if group is None:
            found.append((base, {name: folder}))
        else:
            group[name] = folder
    return found


def base_of_adapter(folder: Path, trust: bool) -> Any:
    """What two adapters must have in common to share a base; None for what is no adapter, or brings tokens of its own."""
    if not (folder / MANUAL).is_file():
        return None
    manual = manual_of(folder, trust)
    if not isinstance(manual.exporter, Adapter) or manual.reading.vocabulary:
        return None
    return replace(manual.reading, strategy={}), four_bits(manual.reading), fingerprint(folder)


def fingerprint(folder: Path) -> str | None:
    """The hash of the base that an adapter was trained on, where its certificate says it."""
    try:
        return Certificate.read(folder).fingerprint
    except ExportError:
        return None


def by_themselves(group: Mapping[str, Path], asked: Asked, world: World) -> list[Served]:
    """Each with a model of its own."""
    found = []
    for name, folder in group.items():
        trained = open_trained(folder, asked.checkpoint if (folder / "config.yaml").is_file() else None, asked.trust)
        found.append(served_as(name, replace(trained, model=placed(trained.model, world.device)), asked, world))
    return found


def on_one_base(group: Mapping[str, Path], asked: Asked, world: World) -> list[Served]:
    """Adapters of one base, which is loaded once, and the base itself where it writes texts."""
    (first, folder), *others = group.items()
    trained = {first: open_trained(folder, trust=asked.trust)}
    model, adapters = trained[first].model, {first: "default"}
    for number, (name, other) in enumerate(others, start=1):
        adapters[name] = f"beside{number}"
        if not Adapter().open_beside(model, other, adapters[name]):
            return by_themselves(group, asked, world)
        trained[name] = described(other, manual_of(other, asked.trust), model)
    model = placed(model.eval(), world.device)
    found = [served_as(name, one, asked, world, choosing(model, adapters[name])) for name, one in trained.items()]
    name = Path(manual_of(folder, asked.trust).reading.base).name
    if found[0].asks != "rows" and name not in asked.folders:
        found.append(replace(found[0], name=name, rows=None, chosen=model.disable_adapter))
    return found


def choosing(model: Any, adapter: str) -> Callable[[], AbstractContextManager[None]]:
    """While it is open, the model computes with this adapter."""

    @contextmanager
    def chosen() -> Iterator[None]:
        if model.active_adapter != adapter:
            model.set_adapter(adapter, inference_mode=True)
        yield

    return chosen


def served_as(
    name: str,
    trained: Trained,
    asked: Asked,
    world: World,
    chosen: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Served:
    """A model, which is on its device, under this name."""
    task = trained.task
    rows = answering(trained, world, asked.batch) if task.predicts else None
    served = Served(
        name=name,
        model=trained.model,
        processor=trained.processor,
        task=task,
        generate=trained.generate,
        context=trained.context,
        rows=rows,
        columns=trained.data.columns,
        batch=asked.batch,
        window=asked.window,
        chosen=chosen,
    )
    if rows is None and served.asks == "rows":
        raise ConfigError(
            f"{trained.place}: --task {task.name} has nothing to predict of a row; peftkit eval scores it"
        )
    return served
