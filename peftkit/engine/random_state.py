"""Every generator of random numbers that training draws from: seeded, read, set."""

from __future__ import annotations

import json
import random

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int, process: int = 0) -> None:
    """Seed Python's, numpy's and torch's generators; every process draws other numbers (its dropout)."""
    random.seed(seed + process)
    np.random.seed((seed + process) % 2**32)
    torch.manual_seed(seed + process)


def seed_again(seed: int, step: int, process: int) -> None:
    """Seed them in the middle of a run, where there is no state to go on with: not with what the run began with."""
    seed_all(random.Random(f"step {seed} {step}").getrandbits(31), process)


def random_state() -> dict[str, Tensor]:
    """All of their states, as integer tensors."""
    numpy_state = np.random.get_state(legacy=False)
    state = {
        "python": _bytes(json.dumps(random.getstate())),
        "numpy": _bytes(json.dumps(numpy_state, default=lambda keys: keys.tolist())),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Go on drawing from where `random_state` was read."""
    version, numbers, gauss = json.loads(_text(state["python"]))
    random.setstate((version, tuple(numbers), gauss))
    numpy_state = json.loads(_text(state["numpy"]))
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _text(tensor: Tensor) -> str:
    return bytes(tensor.tolist()).decode()
