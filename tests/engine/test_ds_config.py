"""DeepSpeed's JSON: every file of ds_configs/ is taken by DeepSpeed itself, and every clash names both sides."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.config import DeepSpeedConfig

from peftkit.engine.ds_config import Config, Plan, autos, fill, find_config, folder, names, read_config
from peftkit.engine.open import check_config, choose_precision
from peftkit.engine.optim import Optimizer
from peftkit.errors import ConfigError

FILES = ["zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_nvme", "zero3_offload"]


def plan(processes: int = 1, precision: str = "fp32", optim: Any = "adamw", total: int = 16, micro: int = 4) -> Plan:
    return Plan(total, micro, processes, precision, Optimizer.model_validate(optim), Path("/tmp/nvme"))


def file_of(folder: Path, content: Any) -> str:
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def problems(action: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        action()
    return caught.value.problems


def test_the_files_are_plain_json_that_any_tool_reads() -> None:
    assert names() == FILES
    for name in FILES:
        content = json.loads((folder() / f"{name}.json").read_text())
        assert content["zero_optimization"]["stage"] == int(name[4])
        known = set(content) - {"zero_optimization", "fp16", "bf16", "wall_clock_breakdown", "steps_per_print"}
        assert known == {
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "gradient_clipping",
            "zero_allow_untested_optimizer",
        }


@pytest.mark.parametrize(("name", "precision"), list(product(FILES, ["fp32", "bf16", "fp16"])))
def test_deepspeed_takes_every_file_once_it_is_filled(name: str, precision: str) -> None:
    filled = fill(read_config(name), plan(precision=precision))
    assert not list(autos(filled))
    taken = DeepSpeedConfig(filled)
    assert (taken.train_batch_size, taken.train_micro_batch_size_per_gpu, taken.gradient_accumulation_steps) == (
        16,
        4,
        4,
    )
    assert taken.gradient_clipping == 1.0
    assert (taken.bfloat16_config.enabled, taken.float16_config.enabled) == (precision == "bf16", precision == "fp16")
    stage = int(name[4])
    assert taken.zero_config.stage == (1 if stage == 0 and precision != "fp32" else stage), (
        "16 bits at stage 0 run as 1"
    )


def test_what_the_run_decides_is_filled_in() -> None:
    filled = fill(read_config("zero3_nvme"), plan(processes=3, total=16, micro=2, optim={"clip": 0.25}))
    assert filled["train_micro_batch_size_per_gpu"] == 2
    assert filled["gradient_accumulation_steps"] == 3, "16 rows on 3 processes: two full micro-batches each, and a rest"
    assert filled["train_batch_size"] == 18, "DeepSpeed wants the product"
    assert filled["gradient_clipping"] == 0.25
    assert filled["zero_optimization"]["offload_param"]["nvme_path"] == "/tmp/nvme"
    assert filled["zero_optimization"]["offload_optimizer"]["nvme_path"] == "/tmp/nvme"


def test_gradients_of_16_bits_are_summed_in_32_unless_the_file_says_otherwise() -> None:
    assert "data_types" not in fill({}, plan())
    assert fill({}, plan(precision="bf16"))["data_types"] == {"grad_accum_dtype": "fp32"}
    theirs = {"data_types": {"grad_accum_dtype": "bf16"}}
    assert fill(theirs, plan(precision="bf16"))["data_types"] == theirs["data_types"]


CLASHES: list[tuple[Config, dict[str, Any], tuple[str, str]]] = [
    ({"train_batch_size": 12}, {}, ("train_batch_size is 12", "--batch.total gives 16")),
    ({"train_micro_batch_size_per_gpu": 8}, {}, ("train_micro_batch_size_per_gpu is 8", "--batch.micro gives 4")),
    ({"gradient_accumulation_steps": 2}, {}, ("gradient_accumulation_steps is 2", "--batch.total")),
    ({"gradient_clipping": 0.5}, {}, ("gradient_clipping is 0.5", "--optim.clip gives 1.0")),
    ({"bf16": {"enabled": True}}, {}, ("bf16.enabled is True", "--precision is fp32")),
    ({"fp16": {"enabled": True}}, {"precision": "bf16"}, ("fp16.enabled is True", "--precision is bf16")),
    ({"bf16": {"enabled": False}}, {"precision": "bf16"}, ("bf16.enabled is False", "--precision is bf16")),
    (
        {"optimizer": {"type": "AdamW", "params": {"lr": 3e-5, "eps": "auto"}}},
        {},
        ("optimizer.params", "--optim"),
    ),
    ({"optimizer": {"type": "OneBitAdam"}}, {}, ("optimizer.type is OneBitAdam", "--optim is adamw")),
    ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5}}}, {}, ("scheduler.params", "--schedule")),
    ({"zero_optimization": {"stage": 2}}, {"optim": "adafactor"}, ("--deepspeed zero0", "--optim adafactor")),
    ({}, {"optim": "adafactor", "precision": "bf16"}, ("--precision fp32", "--optim adafactor")),
]


@pytest.mark.parametrize(("config", "run", "sides"), CLASHES, ids=[str(sides[0]) for _, _, sides in CLASHES])
def test_a_clash_names_both_sides(config: Config, run: dict[str, Any], sides: tuple[str, str]) -> None:
    (problem,) = problems(lambda: fill(config, plan(**run)))
    assert sides[0] in problem and sides[1] in problem


def test_all_clashes_are_told_at_once() -> None:
    everything: Config = {}
    for config, run, _ in CLASHES:
        if not run:
            everything |= config
    assert len(problems(lambda: fill(everything, plan()))) == len(everything)


def test_values_that_say_the_same_are_no_clash() -> None:
    same = {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": False},
    }
    assert fill(same, plan())["train_batch_size"] == 16
    assert fill({}, plan(optim="adafactor"))["zero_optimization"] == {}


@pytest.mark.parametrize(("processes", "streams", "expected"), [(2, True, True), (2, False, False), (1, True, False)])
def test_sums_go_beside_the_backward_pass_where_that_is_possible(
    processes: int, streams: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftkit.engine.ds_config.has_streams", lambda: streams)
    for name in ("zero2", "zero3"):
        filled = fill(read_config(name), plan(processes=processes))
        assert filled["zero_optimization"]["overlap_comm"] is expected
    assert fill(read_config("zero1"), plan(processes=processes))["zero_optimization"]["overlap_comm"] is False


def test_a_file_written_for_another_tool_is_taken_as_it_is(tmp_path: Path) -> None:
    """With "auto" in the optimizer's and the scheduler's settings, and in ZeRO's sizes, as transformers' documentation has it."""
    theirs = {
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_num_steps": "auto"}},
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "offload_optimizer": None,
        },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": 2000,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }
    filled = fill(read_config(file_of(tmp_path, theirs)), plan())
    check_config(filled)
    assert not {"optimizer", "scheduler"} & set(filled), "ours are handed over as objects"
    assert filled["steps_per_print"] == 2000


BROKEN: list[tuple[Any, str]] = [
    ('{"zero_optimization": {"stage": 2}', "not JSON: Expecting"),
    ("[1, 2]", "is an object"),
    ({"zero_optimization": []}, "zero_optimization is [], and has to be an object"),
    ({"bf16": True}, "bf16 is True, and has to be an object"),
    ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4; there are 0, 1, 2 and 3"),
    ({"zero_optimizaton": {"stage": 2}}, "DeepSpeed knows no 'zero_optimizaton'; did you mean 'zero_optimization'?"),
    ({"train_batchsize": 8}, "did you mean 'train_batch_size'?"),
]


@pytest.mark.parametrize(("content", "told"), BROKEN, ids=[told for _, told in BROKEN])
def test_a_broken_file_is_named_with_what_is_wrong(content: Any, told: str, tmp_path: Path) -> None:
    (problem,) = problems(lambda: read_config(file_of(tmp_path, content)))
    assert problem.startswith(f"--deepspeed {tmp_path}/ds.json: ")
    assert told in problem


REFUSED: list[tuple[Config, str]] = [
    ({"zero_optimization": {"stage": 2, "reduce_buckt_size": 3}}, "DeepSpeed knows no 'reduce_buckt_size' there"),
    (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "disk"}}},
        "offload_optimizer.device is 'disk'",
    ),
    ({"fp16": {"loss_scal": 3}}, "DeepSpeed knows no 'loss_scal' there"),
    ({"sparse_attention": {"mode": "fixed"}}, "DeepSpeed refuses the configuration"),
    ({"zero_optimization": {"stage": 2, "made_up": "auto"}}, 'zero_optimization.made_up is "auto"'),
]


@pytest.mark.parametrize(("config", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_what_deepspeed_refuses_is_told_before_a_model_is_loaded(config: Config, told: str) -> None:
    (problem,) = problems(lambda: check_config(fill(config, plan())))
    assert told in problem and problem.startswith("--deepspeed")


def test_nvme_needs_libaio_and_says_so() -> None:
    filled = fill(read_config("zero3_nvme"), plan())
    if AsyncIOBuilder().is_compatible(verbose=False):
        check_config(filled)
    else:
        (problem,) = problems(lambda: check_config(filled))
        assert "libaio-dev" in problem and "zero3_offload" in problem


def test_an_unknown_name_suggests_the_nearest() -> None:
    (problem,) = problems(lambda: find_config("zero3_ofload"))
    assert "did you mean 'zero3_offload'?" in problem
    assert all(name in problem for name in FILES)


def test_a_precision_that_the_device_lacks_is_refused_with_what_it_has() -> None:
    (problem,) = problems(lambda: choose_precision("fp16", {}))
    assert problem == "--precision fp16: this device (cpu) cannot compute in it; it can in fp32, bf16"
    (problem,) = problems(lambda: choose_precision("auto", {"fp16": {"enabled": True}}))
    assert "--precision fp16" in problem
    assert choose_precision("auto", read_config("zero2")) == "fp32"
    assert choose_precision("auto", {"bf16": {"enabled": True}}) == "bf16"
