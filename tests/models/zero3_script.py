"""Load bases plainly and under ZeRO-3, and compare; started by test_zero3.py in a process of its own."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers.integrations import HfDeepSpeedConfig

from peftkit.config.sections import Model
from peftkit.models.inspect import count, depth_of
from peftkit.models.load import Base, context_limit, load, skeleton
from peftkit.strategies import Full, Layerwise
from peftkit.tasks import Task

CAUSAL = Task.model_validate("causal_lm")
THREE = Task.model_validate({"name": "sequence_classification", "labels": ["bad", "fair", "good"]})
CASES = [("bert", THREE), ("bert-of-two", THREE), ("llama", THREE), ("llama", CAUSAL), ("gemma", CAUSAL)]
NEW = [f"<new{number}>" for number in range(30)]


def main(folder: Path) -> None:
    def read(family: str, task: Task, tokens: list[str]) -> Base:
        settings = Model(path=str(folder / family), add_tokens=tokens)
        return load(settings, task, Full(), torch.float32, 3, folder / "cache")

    cases = [(family, task, tokens) for family, task in CASES for tokens in ([], NEW)]
    plain = [read(*case) for case in cases]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", rank=0, world_size=1, init_method=f"file://{folder / 'store'}")
    alive = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    for case, expected in zip(cases, plain, strict=True):
        compare(read(*case), expected)
        blank = skeleton(Model(path=str(folder / case[0]), add_tokens=case[2]), case[1], Full(), torch.float32)
        assert [p.shape for p in blank.parameters()] == [p.shape for p in expected.model.parameters()]
        assert context_limit(expected.model.config) == 128
    assert alive.is_zero3()
    print("the same")


def compare(sharded: Base, plain: Base) -> None:
    assert sharded.fresh == plain.fresh
    # A head of other labels is loaded whole, and cut by the engine.
    is_cut = any(parameter.shape == (0,) for parameter in sharded.model.parameters())
    assert is_cut is not sharded.source.endswith("bert-of-two")
    for (name, mine), (other, theirs) in zip(named(sharded), named(plain), strict=True):
        with deepspeed.zero.GatheredParameters([mine]) if hasattr(mine, "ds_id") else nullcontext():
            assert name == other
            assert torch.equal(mine, theirs), name
    assert count(sharded.model) == count(plain.model)
    assert depth_of(sharded.model) == depth_of(plain.model)
    for strategy in (Layerwise(last=1), Full()):
        trained = [strategy.adapt(base.model, base.fresh) for base in (sharded, plain)]
        assert count(trained[0]) == count(trained[1])


def named(base: Base) -> list[tuple[str, Any]]:
    return list(base.model.named_parameters())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
