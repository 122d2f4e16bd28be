"""Frozen means free: below the lowest layer that trains nothing is kept for a backward pass, and none goes there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from peftkit.config.run import Run
from peftkit.engine.loop import forward
from peftkit.engine.open import Engine
from peftkit.engine.world import World
from peftkit.errors import ModelError
from peftkit.flows.job import Job, make_job
from peftkit.flows.stages import open_at
from peftkit.kernels.trunk import find_trunk
from peftkit.models.inspect import stacks
from tests.tiny import save_tiny, tiny

DEPTHS = {
    "bert": ["num_hidden_layers"],
    "llama": ["num_hidden_layers"],
    "gpt2": ["n_layer"],
    "t5": ["num_layers"],
    "bart": ["encoder_layers"],
}
TASKS = {"bert": "sequence_classification", "t5": "seq2seq", "bart": "seq2seq"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("free")
    texts = ["one two three four", "five six seven eight"]
    rows = [{"text": text, "label": text[0], "source": text, "target": text} for text in texts]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


DEEP = {"t5": {"num_decoder_layers": 2}}


def opened(
    folder: Path, world: World, family: str, strategy: dict[str, Any], layers: int, **more: Any
) -> tuple[Job, Engine]:
    base = folder / f"{family}-{layers}"
    if not base.exists():
        save_tiny(base, family, **dict.fromkeys(DEPTHS[family], layers), **DEEP.get(family, {}))
    checkpointing = more.pop("checkpointing", False)
    settings = {
        "model": {"path": str(base), "gradient_checkpointing": checkpointing},
        "task": TASKS.get(family, "causal_lm"),
        "strategy": strategy,
        "data": {"train": str(folder / "rows.jsonl"), "holdout": 0, "cache": str(folder / "cache")},
        "batch": {"total": 2, "micro": 2},
        **more,
    }
    job = make_job(Run.model_validate(settings), world)
    return job, open_at(job, 0, None)


TOP = {"name": "layerwise", "last": 1}
CASES = [
    ("bert", TOP),
    ("bert", {"name": "head_only"}),
    ("llama", TOP),
    ("llama", {"name": "lora", "rank": 2, "layers": "last"}),
    ("t5", {"name": "decoder_only"}),
    ("bart", TOP),
]


@pytest.mark.parametrize(("zero", "checkpointing"), [("zero0", False), ("zero2", True), ("zero3", True)])
@pytest.mark.parametrize(("family", "strategy"), CASES)
def test_nothing_is_kept_or_computed_for_it(
    family: str, strategy: dict[str, Any], checkpointing: bool, zero: str, folder: Path, world: World
) -> None:
    kept, flops = zip(
        *(spent(folder, world, family, strategy, layers, checkpointing, zero) for layers in (2, 4)), strict=True
    )
    assert kept == (0, 0)
    assert flops[0] == flops[1]  # whether one layer lies below or three


def spent(
    folder: Path, world: World, family: str, strategy: dict[str, Any], layers: int, checkpointing: bool, zero: str
) -> tuple[int, int]:
    """Tensors kept by the embeddings and the frozen layers of the first stack, and the FLOPs of the backward pass."""
    if strategy.get("layers") == "last":
        strategy = {**strategy, "layers": [layers - 1]}
    job, engine = opened(folder, world, family, strategy, layers, checkpointing=checkpointing, deepspeed=zero)
    trunk = find_trunk(job.model)
    inside: list[int] = []
    kept: list[int] = []
    for module in (*trunk.layers, *trunk.embeddings):
        module.register_forward_pre_hook(lambda *_: inside.append(1))
        module.register_forward_hook(lambda *_: inside.clear())

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.extend(inside[:1])
        return tensor

    (batch,) = next(job.batches(0, 1))
    engine.deepspeed.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = job.run.task.loss(forward(engine.deepspeed, job.run.task, batch), batch)
    counter = FlopCounterMode(display=False)
    with counter:
        engine.deepspeed.backward(loss)
    engine.close()
    return len(kept), counter.get_total_flops()


def test_the_trunk_is_what_lies_below() -> None:
    model = tiny("bert", num_hidden_layers=4)
    for name, weight in model.named_parameters():
        weight.requires_grad_("layer.3" in name or "classifier" in name)
    trunk = find_trunk(model)
    assert (len(trunk.layers), len(trunk.above)) == (3, 1)
    assert trunk.embeddings == (model.get_submodule("bert.embeddings"),)
    assert trunk.words == "embeddings and layers 0-2 of bert.encoder.layer"


def test_where_an_embedding_trains_there_is_none() -> None:
    model = tiny("llama")
    for name, weight in model.named_parameters():
        weight.requires_grad_("embed_tokens" in name)
    with pytest.raises(ModelError, match="a weight of the embeddings"):
        find_trunk(model)
    assert stacks(model)[0].layers == 2
