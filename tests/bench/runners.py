"""The runners of a race: the command of each, for the same rows, model and settings, and where it writes a line a step."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench.environments import LITGPT, LLAMAFACTORY, TORCHTUNE, Environment
from tests.bench.workloads import CACHE, Place, Workload

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Asked:
    """One run of a race."""

    work: Workload
    place: Place
    out: Path
    precision: str
    seed: int
    settings: tuple[str, ...] = ()
    """Of peftkit's own: flag=value."""


@dataclass(frozen=True)
class Command:
    """What is started, and the file to which it appends a line (JSON with a loss) when a step is done."""

    words: list[str]
    lines: Path
    cwd: Path = ROOT
    needs: Environment | None = None
    """Made before it is started."""


def command(name: str, asked: Asked) -> Command:
    """The runner's command; `peftkit@FOLDER` is peftkit as it lies in another folder."""
    kind, _, folder = name.partition("@")
    if kind not in RUNNERS:
        raise SystemExit(f"no runner is named {kind!r}; there are: {', '.join(RUNNERS)}")
    made = RUNNERS[kind](asked)
    return replace(made, cwd=Path(folder).resolve()) if folder else made


def peftkit(asked: Asked, *more: str) -> Command:
    """`peftkit train` as a user starts it. It scores nothing, as no rows are held out, and saves at the end alone."""
    work, where = asked.work, asked.place
    steps = -(-len(where.tokens) // work.epochs // work.total) * work.epochs
    settings: dict[str, Any] = {
        "model": where.model,
        "task": work.task,
        "data.train": where.rows,
        "data.holdout": 0,
        "data.max_length": work.max_length,
        "data.cache": CACHE / "peftkit",
        "strategy": work.strategy,
        **{f"strategy.{name}": value for name, value in work.options.items()},
        "batch.total": work.total,
        "steps": steps,
        "checkpoint.every": steps,
        "optim.lr": work.lr,
        "schedule": "constant",
        "schedule.warmup": 0,
        "precision": asked.precision,
        "seed": asked.seed,
        "out": asked.out,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    own = [word for one in (*more, *asked.settings) for word in ("--" + one.partition("=")[0], one.partition("=")[2])]
    return Command([sys.executable, "-m", "peftkit", "train", *words, *own], asked.out / "metrics.jsonl")


def plain(asked: Asked) -> Command:
    """The same without any of peftkit's faster paths."""
    return peftkit(asked, "speed=plain")


def trainer(**more: Any) -> Callable[[Asked], Command]:
    """transformers' Trainer with PEFT; `more` are settings of peer_trainer.py."""

    def made(asked: Asked) -> Command:
        return peer(asked, "peer_trainer.py", {"micro": asked.work.micro, **more})

    return made


def litgpt(asked: Asked) -> Command:
    """litgpt's own LoRA, at its usual micro-batch of 1."""
    if asked.work.strategy != "lora" or not asked.work.llama or asked.work.llama["tie_word_embeddings"]:
        raise SystemExit(f"litgpt does not run {asked.work.name} here: it has LoRA of an untied Llama")
    return peer(asked, "peer_litgpt.py", {"converted": str(CACHE / "litgpt" / asked.place.model.name)}, LITGPT)


def torchtune(asked: Asked) -> Command:
    """torchtune's recipe for LoRA on one device."""
    adapted_llama("torchtune", asked.work)
    if len(asked.place.tokens) % asked.work.total:
        raise SystemExit(f"torchtune leaves out rows that fill no step: give it a multiple of {asked.work.total}")
    return peer(asked, "peer_torchtune.py", {"micro": asked.work.micro}, TORCHTUNE)


def llamafactory(asked: Asked) -> Command:
    """LLaMA-Factory's supervised fine-tuning, without computing activations again as it would if left alone."""
    adapted_llama("LLaMA-Factory", asked.work)
    return peer(asked, "peer_llamafactory.py", {"micro": asked.work.micro}, LLAMAFACTORY)


def adapted_llama(name: str, work: Workload) -> None:
    """SystemExit, if the workload is another one."""
    if not work.llama or not work.adapts:
        raise SystemExit(f"{name} does not run {work.name} here: it has LoRA and QLoRA of a Llama")


def trl(asked: Asked) -> Command:
    """TRL's trainer as it comes (it computes activations again), where CACHE/venvs/trl has it, on this environment's libraries."""
    folder = CACHE / "venvs" / "trl"
    if not folder.exists():
        raise SystemExit(f"no {folder}: pip install --no-deps --target {folder} trl==1.16.0")
    return peer(asked, "peer_trainer.py", {"micro": asked.work.micro, "trl": str(folder)})


def peer(asked: Asked, script: str, more: dict[str, Any], needs: Environment | None = None) -> Command:
    """A peer's script, and its settings beside it in a file; it runs on this environment if it needs none of its own."""
    work, where, lines = asked.work, asked.place, asked.out.with_suffix(".lines")
    settings = {
        "model": str(where.model),
        "rows": str(where.ordered),
        "task": work.task,
        "strategy": work.strategy,
        "options": work.options,
        "total": work.total,
        "lr": work.lr,
        "max_length": work.max_length,
        "precision": asked.precision,
        "seed": asked.seed,
        "out": str(asked.out),
        "lines": str(lines),
        **more,
    }
    file = asked.out.with_suffix(".json")
    file.write_text(json.dumps(settings))
    python = str(needs.python) if needs else sys.executable
    return Command([python, str(HERE / script), str(file)], lines, needs=needs)


RUNNERS: dict[str, Callable[[Asked], Command]] = {
    "peftkit": peftkit,
    "peftkit-plain": plain,
    "trainer": trainer(),
    "trainer-mb1": trainer(micro=1),
    "trainer-medium": trainer(micro=1, medium=True),
    "trainer-group": trainer(group=True),
    "trainer-autocast": trainer(autocast=True),
    "trainer-mb1-autocast": trainer(micro=1, autocast=True),
    "litgpt": litgpt,
    "trl": trl,
    "torchtune": torchtune,
    "llamafactory": llamafactory,
}
"""`trainer` has the micro-batch of most people (4; 16 where texts are classified), `-medium` sets torch's precision of fp32
products to medium, `-autocast` keeps the base in fp32 under bf16. `torchtune` and `llamafactory` (LLaMA-Factory) have a
micro-batch of 4 and keep all activations: so does torchtune by itself, and LLaMA-Factory if told to."""
