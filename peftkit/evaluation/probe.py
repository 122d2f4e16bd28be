"""A probe: made-up inputs with what the trained model says to them, so that anybody can ask an export again, without a row of data.

Token ids are drawn from the vocabulary, pixels and sound from a normal distribution, by numpy's RandomState, whose stream is
frozen (NEP 19): the same on every machine. Where there are many classes a position is kept as the products of its centred
logits with vectors of random signs, whose mean square is that of the logits (Johnson and Lindenstrauss, 1984): a difference
anywhere among the classes shows in them, as large as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftkit.evaluation.certificate import Limits, Probe
from peftkit.evaluation.figures import centred, margin
from peftkit.evaluation.verify import Answer, Question, plain_model, writes

SEED = 7
ROWS, LENGTH, POSITIONS, WORDS = 2, 16, 32, 8
PRODUCTS = 16
"""Numbers that are kept of a position with more classes than twice as many."""
TOP = 4
DIGITS = 7


def recipe(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How inputs like these are made without looking at what is in them: shapes are kept, texts cut to LENGTH tokens."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    is_text = not any(value.is_floating_point() for value in tensors.values())
    longest = max((value.shape[-1] for value in tensors.values() if value.ndim > 1), default=0)
    made: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        shape = [min(value.shape[0], ROWS), *value.shape[1:]]
        if is_text and value.ndim > 1 and shape[-1] == longest:
            shape[-1] = min(longest, LENGTH)
        made[name] = {"shape": shape, "draw": kind(name, value)}
        if made[name]["draw"] == "ids":
            config = plain_model(model).config
            made[name] |= {"below": vocabulary(model), "without": special(config)}
            if name == "input_ids" and config.is_encoder_decoder and isinstance(config.eos_token_id, int):
                made[name]["last"] = config.eos_token_id  # BART classifies by the state there
    return made


def kind(name: str, value: Tensor) -> str:
    if value.is_floating_point() and "mask" not in name:
        return "normal"
    return "ids" if name.endswith("input_ids") else "ones" if "mask" in name else "zeros"


def vocabulary(model: nn.Module) -> int:
    """Rows of the input embedding."""
    return len(plain_model(model).get_input_embeddings().weight)


def special(config: Any) -> list[int]:
    """Tokens that mean something to the model itself: padding, ends, places of images."""
    named = [value for name, value in config.get_text_config().to_dict().items() if name.endswith("token_id")]
    flat = [one for value in named for one in (value if isinstance(value, list) else [value])]
    return sorted({one for one in flat if isinstance(one, int) and one >= 0})


def question(made: Mapping[str, Mapping[str, Any]], seed: int, text: bool) -> Question:
    """The inputs that the recipe makes; with `text`, the first row's tokens are also to be continued."""
    inputs = {name: drawn(made[name], seed + number) for number, name in enumerate(sorted(made))}
    prompts = [inputs["input_ids"][0]] if text else []
    return Question([inputs], [None], prompts, words=WORDS)


def drawn(how: Mapping[str, Any], seed: int) -> Tensor:
    numbers, shape = np.random.RandomState(seed), tuple(how["shape"])
    if how["draw"] == "ids":
        allowed = np.setdiff1d(np.arange(how["below"]), how["without"])
        ids = torch.from_numpy(allowed[numbers.randint(0, len(allowed), shape)])
        if "last" in how:
            ids[..., -1] = how["last"]
        return ids
    if how["draw"] == "normal":
        return torch.from_numpy(numbers.standard_normal(shape).astype(np.float32))
    return torch.full(shape, int(how["draw"] == "ones"))


def probing(model: nn.Module, inputs: Mapping[str, Any], each: bool) -> tuple[dict[str, dict[str, Any]], Question]:
    """The recipe and the question of a probe of this model."""
    made = recipe(model, inputs)
    found = question(made, SEED, writes(model) and "input_ids" in made)
    found.each = each
    return made, found


def asked(probe: Probe) -> Question:
    """The same question again."""
    again = question(probe.inputs, probe.seed, bool(probe.text))
    again.each = probe.each
    return again


def certified(made: dict[str, dict[str, Any]], asked: Question, trained: Answer, export: Answer) -> Probe | None:
    """What is kept of the trained model's answer, and how far the export's was from it; None if it is no number."""
    first, second = sketch(trained.logits), sketch(export.logits)
    if not first.isfinite().all() or first.shape != second.shape or not second.isfinite().all():
        return None
    logits = centred(trained.logits[:POSITIONS])
    return Probe(
        seed=SEED,
        inputs=made,
        positions=len(logits),
        width=logits.shape[-1],
        sketch=[[shortened(value) for value in row] for row in first.tolist()],
        top=logits.topk(min(TOP, logits.shape[-1])).indices.tolist(),
        leads=[shortened(value) for value in margin(logits).tolist()],
        text=trained.texts[0].tolist() if trained.texts else [],
        error=distance(first, second),
        same_text=torch.equal(trained.texts[0], export.texts[0]) if trained.texts else None,
        each=asked.each,
    )


def sketch(logits: Tensor) -> Tensor:
    """(positions, numbers): the centred logits of the first positions, or their products with random signs."""
    found = centred(logits[:POSITIONS])
    found = torch.where(found == -torch.inf, 0.0, found)  # classes that are masked
    width = found.shape[-1]
    if width <= 2 * PRODUCTS:
        return found
    signs = np.random.RandomState(SEED).randint(0, 2, (width, PRODUCTS)) * 2.0 - 1
    products: Tensor = found @ torch.from_numpy(signs) / width**0.5
    return products


def distance(first: Tensor, second: Tensor) -> float:
    """Root mean square of the difference, in parts of the first one's."""
    return float((second - first).square().mean().sqrt() / first.square().mean().sqrt().clamp(min=1e-12))


def shortened(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def remeasured(probe: Probe, given: Answer, limits: Limits) -> tuple[float, float, list[str]]:
    """How far the answer is from the trained model's now, how far it may be, and what is wrong with it, in a sentence each."""
    allowed = max(limits.relative_error, 1.5 * probe.error)
    width, positions = given.logits.shape[-1], len(given.logits[:POSITIONS])
    if (positions, width) != (probe.positions, probe.width):
        shapes = f"{width} classes at {positions} positions instead of {probe.width} at {probe.positions}"
        return float("inf"), allowed, [f"it answers the probe with {shapes}"]
    before, now = torch.tensor(probe.sketch, dtype=torch.float64), sketch(given.logits)
    error = distance(before, now)
    wrong = []
    if not error <= allowed:
        wrong.append(
            f"its answers to the probe differ from the trained model's by {error:.3g} of their size (allowed {allowed:.2g})"
        )
    clear = torch.tensor(probe.leads) > 8 * allowed * float(before.square().mean().sqrt())
    other = given.logits[:POSITIONS].argmax(-1) != torch.tensor([row[0] for row in probe.top])
    if width > 1 and (count := int((clear & other).sum())):
        wrong.append(f"the likeliest class differs at {count} of {int(clear.sum())} clear positions of the probe")
    if limits.same_text is not None and probe.same_text and given.texts[0].tolist() != probe.text:
        wrong.append("it continues the probe with other words than when it was certified")
    return error, allowed, wrong
