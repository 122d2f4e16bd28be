"""What regularisation and averaging do not go with, a sentence each, naming the flags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peftkit.engine.ds_config import offload_devices, read_config
from peftkit.errors import ConfigError

NOT_ONE_CLASS = ("question_answering", "preference", "reward")
"""Tasks that do not predict one class for each target, as R-Drop has it."""


def clashes(run: Any) -> Iterator[str]:
    """Of `--regularize` with the rest of the run."""
    chosen, task = run.regularize, run.task
    if chosen.pull and run.strategy.makes_adapter:
        yield (
            f"--regularize.pull {chosen.pull:g} pulls trained weights to the base's, and with --strategy {run.strategy.name} the"
            " base does not move; --optim.weight_decay pulls the adapter to nothing, which is the base"
        )
    if chosen.neftune and task.reads != "text":
        yield (
            f"--regularize.neftune puts noise on the embeddings of tokens, and --task {task.name} reads {task.reads};"
            " leave it out"
        )
    several = [
        name for name in ("problem", "writes") if getattr(task, name, None) in ("multi_label", "regression", "ctc")
    ]
    if chosen.r_drop and (several or task.name in NOT_ONE_CLASS):
        what = " ".join([task.name, *(f"with {name} {getattr(task, name)}" for name in several)])
        yield f"--regularize.r_drop compares two predictions of one class, and --task {what} predicts something else; leave it out"
    if (chosen.pull or chosen.ema is not None) and _is_on_disk(run.deepspeed):
        flag = "pull" if chosen.pull else "ema"
        yield (
            f"--regularize.{flag} needs the optimizer's state in memory, and --deepspeed {run.deepspeed} keeps it on NVMe;"
            " use zero3_offload"
        )


def averaging_clashes(run: Any) -> Iterator[str]:
    """Of `--checkpoint.final average` with how many checkpoints stay."""
    chosen = run.checkpoint
    if chosen.final == "average" and 0 < chosen.keep < chosen.average:
        yield (
            f"--checkpoint.final average takes the last {chosen.average} checkpoints, and --checkpoint.keep {chosen.keep} leaves"
            f" fewer; give --checkpoint.keep {chosen.average}, or --checkpoint.average {chosen.keep}"
        )


def _is_on_disk(config: str) -> bool:
    try:
        return offload_devices(read_config(config))[0] == "nvme"
    except ConfigError:
        return False  # said elsewhere
