"""Kept activations: the run is the one in which the trunk is computed each time, and the trunk runs once for each row."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from peftkit.config.run import Run
from peftkit.engine.checkpoint import Progress, read_trained
from peftkit.engine.world import World
from peftkit.errors import ModelError
from peftkit.evaluation.score import Split, score
from peftkit.flows.job import make_job
from peftkit.flows.stages import all_steps, open_at
from peftkit.flows.train import train
from peftkit.kernels.trunk_cache import TrunkCache
from peftkit.run_folder import RunFolder
from tests.launch import torchrun
from tests.tiny import save_image, save_tiny

ROWS, VALIDATED, EPOCHS = 10, 5, 3
WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
]
DEEP = {
    "gpt2": {"n_layer": 3},
    "distilbert": {"n_layers": 3},
    "bart": {"encoder_layers": 3, "decoder_layers": 3},
    "t5": {"num_layers": 3},
}


@dataclass
class Done:
    """What a training came to."""

    losses: list[float]
    weights: dict[str, torch.Tensor]
    scores: list[float]
    computed: int
    """Rows that were run through the trunk."""
    ran: int
    """Passes of the lowest layer."""
    damaged: int = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trunk")
    texts = [" ".join(WORDS[: 2 + row % 7]) + f" {row}" for row in range(ROWS)]
    rows = [{"text": text, "label": "ab"[row % 2], "source": text, "target": text} for row, text in enumerate(texts)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "validation.jsonl").write_text("".join(lines[:VALIDATED]))
    return folder


def settings(folder: Path, family: str, strategy: dict[str, Any], task: str, **more: Any) -> dict[str, Any]:
    base = folder / family
    if not base.exists():
        deep = DEEP.get(family, {"num_hidden_layers": 3})
        heads = {"seq2seq": None, "causal_lm": "causal_lm", "image_classification": "image"}
        head = heads.get(task, "sequence_classification")
        save_tiny(base, family, head=head, **deep)
    split = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation")}
    steps = EPOCHS * -(-ROWS // 4)
    return {
        "model": {"path": str(base)},
        "task": task,
        "strategy": strategy,
        "data": {**split, "cache": str(folder / "cache")},
        "batch": {"total": 4, "micro": 2},
        "optim": {"name": "adamw", "lr": 1e-2, "eps": 1e-5},
        "steps": steps,
        **more,
    }


def run(chosen: dict[str, Any], world: World) -> Done:
    """Train, and score before, between and after the steps."""
    job = make_job(Run.model_validate(chosen), world)
    passes = count_passes(job.model)
    engine = open_at(job, 0, None)
    passes.clear()  # those that prove what else is hung on the model
    (cache,) = [hook for hook in engine.hooks if isinstance(hook, TrunkCache)] or [None]
    store = job.prepared.validation
    assert store is not None
    split = Split(store, job.prepared.rows("validation"), job.base.processor)
    losses, scores = [], []

    def scored() -> None:
        batches = job.evaluation(store, None)
        scores.append(score(engine.deepspeed, batches, split, job.run.task, job.metrics, world).numbers["loss"])

    scored()
    for _, step in all_steps(job, engine, Progress()):
        losses.append(step.loss)
        if step.step % 4 == 0:
            scored()
    weights = {name: weight.detach().clone() for name, weight in engine.trained().items()}
    done = Done(
        losses, weights, scores, cache.computed if cache else 0, len(passes), cache.shelf.damaged if cache else 0
    )
    engine.close()
    return done


def count_passes(model: nn.Module) -> list[int]:
    """A list that grows with every pass of the lowest layer."""
    from peftkit.models.inspect import stacks

    passes: list[int] = []
    lowest = model.get_submodule(f"{stacks(model)[0].path}.0")
    lowest.register_forward_hook(lambda *_: passes.append(1))
    return passes


def same(found: Done, expected: Done, tolerance: float) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=tolerance)
    assert found.scores == pytest.approx(expected.scores, rel=tolerance)
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=tolerance, atol=tolerance)


TOP = {"name": "layerwise", "last": 1}
LORA = {"name": "lora", "rank": 4, "layers": [2]}


@pytest.mark.parametrize(
    ("family", "task", "strategy"),
    [
        ("bert", "sequence_classification", TOP),
        ("bert", "sequence_classification", {"name": "head_only"}),
        ("electra", "sequence_classification", TOP),
        ("gpt2", "causal_lm", TOP),
        ("llama", "causal_lm", LORA),
        ("gemma", "causal_lm", TOP),
        ("bart", "seq2seq", TOP),
        ("bart", "seq2seq", {"name": "decoder_only"}),
        ("t5", "seq2seq", {"name": "decoder_only"}),
    ],
)
def test_the_steps_are_those_of_the_whole_model(
    family: str, task: str, strategy: dict[str, Any], folder: Path, world: World, tmp_path: Path
) -> None:
    """Without dropout the trunk is the same in both modes. 1e-5: rows meet other paddings, so products other shapes."""
    expected = run(settings(folder, family, strategy, task), world)
    kept = settings(folder, family, {**strategy, "cache_trunk": True}, task)
    kept["data"]["cache"] = str(tmp_path)
    found = run(kept, world)
    same(found, expected, 1e-5)
    assert found.computed == ROWS + VALIDATED
    assert found.ran < expected.ran / 2
    again = run(kept, world)  # the files of the first
    same(again, found, 0)
    assert (again.computed, again.ran) == (0, 0)


DROPPING = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}


def bert(folder: Path, tmp_path: Path, **strategy: Any) -> dict[str, Any]:
    """A run of a model with dropout, with a cache of its own."""
    if not (folder / "dropping").exists():
        save_tiny(folder / "dropping", "bert", num_hidden_layers=3, **DROPPING)
    chosen = settings(folder, "bert", {**TOP, "cache_trunk": True, **strategy}, "sequence_classification")
    chosen["data"]["cache"] = str(tmp_path)
    return chosen | {"model": {"path": str(folder / "dropping")}}


def test_what_drops_out_above_does_not_hang_on_what_is_kept(folder: Path, world: World, tmp_path: Path) -> None:
    """To the last bit: the trunk has no dropout, and the layers above draw the same numbers, kept or computed each time."""
    each_time = run(bert(folder, tmp_path, cache_budget=0), world)
    same(run(bert(folder, tmp_path), world), each_time, 1e-5)
    some = run(bert(folder, tmp_path / "some", cache_budget="8KB"), world)
    same(some, each_time, 1e-5)
    assert ROWS + VALIDATED < some.computed < each_time.computed


def test_half_the_bytes_are_a_rounding(folder: Path, world: World, tmp_path: Path) -> None:
    exact = run(bert(folder, tmp_path), world)
    rounded = run(bert(folder, tmp_path, cache_format="bf16"), world)
    assert rounded.losses == pytest.approx(exact.losses, rel=1e-2)
    assert rounded.losses != exact.losses
    assert {bytes_in(entry) for entry in (tmp_path / "trunk").iterdir()} == {
        2 * (small := bytes_in_smallest(tmp_path)),
        small,
    }


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.values"))


def bytes_in_smallest(cache: Path) -> int:
    return min(map(bytes_in, (cache / "trunk").iterdir()))


def test_damage_is_noticed_and_what_was_cut_off_never_looks_whole(folder: Path, world: World, tmp_path: Path) -> None:
    first = run(bert(folder, tmp_path), world)
    (values,) = (tmp_path / "trunk").glob("*/*.values")
    (index,) = (tmp_path / "trunk").glob("*/*.index")
    changed = bytearray(values.read_bytes())
    changed[100] ^= 1
    values.write_bytes(changed)
    index.write_bytes(index.read_bytes()[:-3])
    again = run(bert(folder, tmp_path), world)
    same(again, first, 1e-5)
    assert (again.damaged, again.computed) == (1, 2)
    values.write_bytes(b"")
    assert run(bert(folder, tmp_path), world).computed >= ROWS + VALIDATED - 2


def test_what_is_kept_of_something_else_is_not_used(folder: Path, world: World, tmp_path: Path) -> None:
    run(bert(folder, tmp_path), world)
    other_rows = bert(folder, tmp_path)
    (folder / "other.jsonl").write_text((folder / "train.jsonl").read_text().replace("one", "eleven"))
    other_rows["data"]["train"] = str(folder / "other.jsonl")
    for other in (
        other_rows,
        bert(folder, tmp_path, last=2),
        {**bert(folder, tmp_path), "model": {"path": str(folder / "bert")}},
        bert(folder, tmp_path, cache_format="bf16"),
    ):
        assert run(other, world).computed == ROWS + VALIDATED


def test_what_other_runs_left_makes_room(folder: Path, world: World, tmp_path: Path) -> None:
    run(bert(folder, tmp_path), world)
    (old,) = (tmp_path / "trunk").iterdir()
    run(bert(folder, tmp_path, last=2, cache_budget="1KB"), world)
    assert not old.exists()


def test_pictures_are_kept_too(folder: Path, world: World, tmp_path: Path) -> None:
    rows = [{"image": save_image(folder / f"{row}.png", row), "label": "ab"[row % 2]} for row in range(6)]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = settings(folder, "vit", {"name": "head_only"}, "image_classification", steps=4)
    chosen["data"] = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")} | {
        "cache": str(tmp_path)
    }
    expected = run(chosen, world)
    found = run({**chosen, "strategy": {"name": "head_only", "cache_trunk": True}}, world)
    same(found, expected, 1e-5)
    assert found.computed == 12


@pytest.mark.launch
def test_a_resumed_run_goes_on_to_the_bit_and_computes_nothing_again(folder: Path, tmp_path: Path) -> None:
    """With dropout above: after step 3 of 9, with the files that the run left."""
    chosen = bert(folder, tmp_path) | {
        "out": str(tmp_path / "run"),
        "checkpoint": {"every": 3, "keep": 0},
        "eval": {"every": 3},
    }
    train(Run.model_validate(chosen))
    whole = RunFolder(tmp_path / "run")
    expected = read_trained(whole.checkpoint(9))
    size = sum(map(bytes_in, (tmp_path / "trunk").iterdir()))
    for step in (6, 9):
        shutil.rmtree(whole.checkpoint(step))
    train(Run.model_validate(chosen | {"resume": True}))
    found = read_trained(whole.checkpoint(9))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert sum(map(bytes_in, (tmp_path / "trunk").iterdir())) == size


@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        ({**TOP, "embeddings": True}, "a weight of the embeddings or of the lowest layer"),
        ({**TOP, "first": 1}, "a weight of the embeddings or of the lowest layer"),
        ({"name": "layerwise", "norms": True}, "a weight of the embeddings or of the lowest layer"),
    ],
)
def test_where_nothing_is_frozen_below_it_is_refused(
    strategy: dict[str, Any], why: str, folder: Path, world: World, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"--strategy.cache_trunk: {why}"):
        run(bert(folder, tmp_path, **strategy), world)


@pytest.mark.parametrize(("family", "why"), [("albert", "runs its layers several times"), ("t5", "hands on more than")])
def test_what_cannot_be_told_apart_is_refused(family: str, why: str, folder: Path, world: World) -> None:
    task = "seq2seq" if family == "t5" else "sequence_classification"
    strategy = {"name": "head_only"} if family == "albert" else TOP
    with pytest.raises(ModelError, match=why):
        run(settings(folder, family, {**strategy, "cache_trunk": True}, task), world)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"task": "masked_lm"}, "masks other tokens each time"),
        ({"task": "preference"}, "reads two answers for a row"),
        ({"regularize": {"neftune": 5}}, "--regularize.neftune adds other noise"),
        ({"regularize": {"r_drop": 1}}, "--regularize.r_drop runs each row twice"),
        ({"strategy": {"name": "layerwise", "unfreeze_every": 2, "cache_trunk": True}}, "lets more of them train"),
        ({"strategy": {"name": "lora", "cache_trunk": True}}, "every layer has an adapter"),
        ({"strategy": {"name": "layerwise", "cache_budget": "1GB"}}, "none are kept"),
    ],
)
def test_what_shows_the_trunk_something_else_each_time_is_a_conflict(more: dict[str, Any], why: str) -> None:
    chosen = Run.model_validate({"strategy": {**TOP, "cache_trunk": True}, "task": "causal_lm", **more})
    assert why in "\n".join(chosen.problems())


@pytest.mark.launch
@pytest.mark.parametrize("processes", [1, 2])
def test_two_processes_and_zero_3_come_to_the_same(processes: int, folder: Path, tmp_path: Path) -> None:
    """Rows move between processes, one has none in the last step, and what is kept on one is not on the other."""
    cases = {}
    for zero in ("zero0", "zero1", "zero2", "zero3"):
        for kept in (False, True):
            strategy = {**TOP, "cache_trunk": True, "cache_budget": "12KB"} if kept else TOP
            case = settings(folder, "bert", strategy, "sequence_classification", deepspeed=zero)
            case["data"]["cache"] = str(tmp_path / zero)
            cases[f"{zero}-{kept}"] = case
    case = {**cases["zero3-True"], "model": {"path": str(folder / "bert"), "gradient_checkpointing": True}}
    cases["zero3-True-checkpointed"] = case
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (tmp_path / "out").mkdir()
    worker = Path(__file__).parents[1] / "steps_worker.py"
    done = torchrun(processes, worker, tmp_path / "cases.json", tmp_path / "out", timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
    expected = json.loads((tmp_path / "out" / "zero0-False.json").read_text())
    weights = load_file(tmp_path / "out" / "zero0-False.safetensors")
    for name in cases:
        found = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert "failed" not in found, found["failed"]
        for one, other in zip(found["steps"], expected["steps"], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert found["scores"] == pytest.approx(expected["scores"], rel=1e-5)
        for key, value in load_file(tmp_path / "out" / f"{name}.safetensors").items():
            torch.testing.assert_close(value, weights[key], rtol=1e-5, atol=1e-5)
