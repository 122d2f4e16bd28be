"""What a training holds: the sum over all tensors that live in the process, part by part, at every ZeRO stage."""

from __future__ import annotations

import gc
import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftkit.engine import memory
from peftkit.engine.loop import steps
from peftkit.engine.memory import available, forget_peak, held, is_out_of_memory, peak
from peftkit.engine.world import World
from tests.conftest import Together
from tests.engine.odd import opened, optimizer
from tests.engine.test_nonfinite import Poisoned

WIDE = 384


class Wide(nn.Module):
    """A million weights, so that what a scalar takes does not count, in matrices that ZeRO-3 does cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, WIDE)
        self.middle = nn.Sequential(*(nn.Linear(WIDE, WIDE) for _ in range(8)))
        self.last = nn.Linear(WIDE, 3)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.last(self.middle(self.first(rows)))
        return found


WEIGHTS = sum(weight.numel() for weight in Wide().parameters())


def living() -> int:
    """Bytes of all storages that any tensor of this process looks into."""
    gc.collect()
    found = {}
    for one in gc.get_objects():
        if type(one) in (Tensor, nn.Parameter):
            storage = one.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(size for pointer, size in found.items() if pointer)


def every_tensor_counts_once(world: World, folder: Path, zero: str, precision: str, optim: str = "adamw") -> None:
    """Beside what was there before, after a step: at least 98 % of it is accounted for, and not more than all."""
    before = living()
    model = Wide()
    engine = opened(model, zero, world, optimizer(optim), precision)
    batch = {"rows": torch.ones(6, 5), "labels": torch.zeros(6, dtype=torch.long), "way": "good"}
    list(steps(engine, [[batch]], Poisoned(), world, lambda step: 1.0))
    there, found = living() - before, held(engine, model)
    assert 0.98 * there <= found.total <= 1.01 * there, (found, there)
    share = WEIGHTS / (1 if zero == "zero0" else world.processes)
    copies = 2 if optim == "adamw" else 1
    assert found.moments == pytest.approx(4 * copies * share, rel=0.02)
    width = 2 if precision == "bf16" else 4
    assert found.weights == pytest.approx(width * (share if zero == "zero3" else WEIGHTS), rel=0.1)
    engine.close()


CASES = [
    ("zero0", "fp32"),
    ("zero1", "fp32"),
    ("zero1", "bf16"),
    ("zero2", "fp32"),
    ("zero2", "bf16"),
    ("zero3", "bf16"),
]
CHECKS: dict[str, Any] = {
    f"{zero}-{precision}": partial(every_tensor_counts_once, zero=zero, precision=precision)
    for zero, precision in CASES
}
CHECKS |= {"offload": partial(every_tensor_counts_once, zero="zero2_offload", precision="fp32", optim="lion")}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:130] DefaultCPUAllocator: can't allocate memory: you tried to"
            ),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("shapes do not match"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_says_that_there_is_no_more_memory(problem: BaseException, expected: bool) -> None:
    assert is_out_of_memory(problem) is expected


def test_the_allocator_says_it_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_the_peak_begins_anew() -> None:
    torch.ones(64 * 2**20, dtype=torch.uint8)
    forget_peak()
    before = peak()
    block = torch.ones(32 * 2**20, dtype=torch.uint8)
    del block
    assert 24 * 2**20 < peak() - before < 48 * 2**20


def test_the_least_of_all_limits_counts(alone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = available(alone)
    assert whole > 2**28
    (tmp_path / "memory.max").write_text(f"{2**26}\n")
    (tmp_path / "memory.current").write_text(f"{2**25}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2**20}\n")
    assert min(memory._group_rooms(tmp_path)) == 2**25 + 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert min(memory._group_rooms(tmp_path)) > 2**28
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available(alone) == pytest.approx(whole / 4, rel=0.5)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (2**44, hard))
        assert available(alone) == pytest.approx(whole / 4, rel=0.5), "a limit far away changes nothing"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
