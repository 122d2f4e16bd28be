"""How far an export is from what was trained: the figures of two answers, and what each may be."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from peftkit.config.export import Bounds
from peftkit.errors import ExportError
from peftkit.evaluation.certificate import Figures, Limits
from peftkit.evaluation.verify import Answer

TOGETHER = 16
"""Positions that are compared at a time: what fp64 takes of a large vocabulary stays small."""


def limits(stored: torch.dtype, text: bool, tolerance: float | None = None, bounds: Bounds | None = None) -> Limits:
    """What an export with weights in this format may differ by.

    Measured on SmolLM2-135M and on tiny models: kept in fp32, logits differ by the order of sums, 1e-6 of their size.
    Rounding every merged weight to bf16 (7 bits) changes the logits by 0.4 to 0.7 %, to fp16 by 0.06 %. What must be
    refused lies well above: the original 16-bit weights, which differ from the dequantised ones by NF4's rounding, give
    logits that differ by 7 to 30 %. So the tolerance is 2.5 epsilon: 2 % for bf16, 0.24 % for fp16. KL is half the
    variance of the difference under the model's own probabilities, and a language model's logits spread over 2 to 5;
    hence 12 times the square. The likeliest class may change only where the model itself wavers.

    An exporter that rounds more has a tolerance of its own. SmolLM2-135M-Instruct with a LoRA of rank 8 (ten steps, which moved the
    logits by 37 % of their size), on 183 positions: relative error, KL / its square, share of what training changed:

                          fp32            bf16            int8 (torchao)   int8 (bitsandbytes)  NF4
    right                 2e-6            .009 3.3  .992  .042 2.7  .982   .094  2.5  .973      .32  2.7  .868
    scaled by 0.9         .020 3.9  .973  .028 4.0  .962  .049 3.2  .955   .101  2.8  .937      .32  2.8  .840
    scaled by 0.5         .123 4.3  .780  .133 4.4  .756                   .177  4.0  .712      .37  3.2  .566
    without its adapter   .374 7.7  0     .374 7.7  0                      .392  7.7  -.01      .54  5.6  -.01
    one layer of 30 lost  .009 3.3  .995  .014 3.2  .987                   .091  2.6  .967      .32  2.7  .860

    So there the KL may be 6 times the square, and the share is off 1 by at most 0.04 and 0.4 of the tolerance, and four standard
    errors: half an adapter is refused in any number of bits, a tenth less of it in fp32 and bf16. One layer of 30 is seen in fp32;
    elsewhere it is less than what rounding costs, and nothing here can tell (on tiny models, where a layer is a half, it can).
    """
    relative = tolerance or max(1e-4, 2.5 * torch.finfo(stored).eps)
    exact = tolerance is None and stored in (torch.float32, torch.float64)
    own = Limits(
        kl=(12 if tolerance is None else 6) * relative**2,
        top1_decided=1.0,
        relative_error=relative,
        max_difference=20 * relative,
        # One rounding may turn a word where two are as likely, and then the rest of the text differs.
        same_text=0.5 if exact and text else None,
        learnt=0.04 + 0.4 * relative,
    )
    if bounds is None:
        return own
    asked = {
        "relative_error": bounds.max_relative_error,
        "kl": bounds.max_kl,
        "same_text": bounds.min_same_text if text else None,
        "max_difference": bounds.max_relative_error and 20 * bounds.max_relative_error,
    }
    return own.model_copy(update={name: value for name, value in asked.items() if value is not None})


def compare(reference: Answer, export: Answer, allowed: Limits, untrained: Answer | None = None) -> Figures:
    """How far `export` is from `reference`, and with what the model says `untrained` how much it has of what training changed."""
    if reference.logits.shape != export.logits.shape:
        shapes = f"{tuple(export.logits.shape)} instead of {tuple(reference.logits.shape)}"
        raise ExportError(f"the export's logits have the shape {shapes}")
    parts = [
        differences(*few)
        for few in zip(*(torch.split(answer.logits, TOGETHER) for answer in (reference, export)), strict=True)
    ]
    squares, errors, largest, same, leads, divergences = (torch.cat(column) for column in zip(*parts, strict=True))
    scale = float(squares.mean().sqrt())
    decided = leads > 8 * allowed.relative_error * scale
    share, its_error = learnt(reference, export, untrained)
    return Figures(
        kl=_number(max(0.0, float(divergences.mean()))),
        top1=float(same.double().mean()),
        top1_decided=float(same[decided].double().mean()) if decided.any() else 1.0,
        relative_error=_number(float(errors.mean().sqrt()) / max(scale, 1e-12)),
        max_difference=_number(float(largest.max())),
        scale=scale,
        same_text=same_texts(reference.texts, export.texts),
        learnt=share,
        learnt_error=its_error,
    )


def learnt(reference: Answer, export: Answer, untrained: Answer | None) -> tuple[float | None, float | None]:
    """The least-squares c of export - untrained = c (reference - untrained), over all logits, and its standard error.

    Rounding pulls the logits hither and thither and leaves c near 1; an adapter that was scaled wrongly, or lost a layer, does not.
    The error is a ratio estimator's, each position one draw. The untrained model may have been asked the first positions only.
    """
    if untrained is None or untrained.logits.shape[-1] != reference.logits.shape[-1]:
        return None, None
    asked = len(untrained.logits)
    three = zip(*(torch.split(one.logits[:asked], TOGETHER) for one in (reference, export, untrained)), strict=True)
    products, squares = (torch.cat(column) for column in zip(*(along(*few) for few in three), strict=True))
    total = float(squares.sum())
    if total <= 0 or not products.isfinite().all():
        return None, None
    share, many = float(products.sum()) / total, len(squares)
    spread = float((products - share * squares).square().sum()) * many / max(1, many - 1)
    return share, spread**0.5 / total


def along(trained: Tensor, export: Tensor, untrained: Tensor) -> tuple[Tensor, Tensor]:
    """Of each position: the product of the export's change and the trained model's, and the square of the latter."""
    start = centred(untrained)
    finite = start.isfinite()
    change, its = (torch.where(finite, centred(one) - start, 0.0) for one in (trained, export))
    return (change * its).sum(-1), change.square().sum(-1)


def differences(first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
    """Of each position: the mean square of its logits and of their differences, the largest difference, whether the likeliest
    class is the same, by how much it leads, and the divergence."""
    first, second = centred(first), centred(second)
    difference = torch.where(first == second, 0.0, second - first)  # the same infinity on both sides is no difference
    finite = torch.where(first.isfinite(), first, 0.0)
    return (
        finite.square().mean(-1),
        difference.square().mean(-1),
        difference.abs().amax(-1),
        first.argmax(-1) == second.argmax(-1),
        margin(first),
        divergence(first, second),
    )


def centred(logits: Tensor) -> Tensor:
    """Logits count only by their differences; a single output (regression) stays as it is."""
    logits = logits.double()
    if logits.shape[-1] == 1:
        return logits
    usable = logits.isfinite()
    mean = torch.where(usable, logits, 0.0).sum(-1, keepdim=True) / usable.sum(-1, keepdim=True).clamp(min=1)
    return logits - mean


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Kullback and Leibler's, a number a position."""
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    return torch.where(log_p == log_q, 0.0, log_p.exp() * (log_p - log_q)).sum(-1)


def margin(logits: Tensor) -> Tensor:
    """By how much the first choice leads."""
    if logits.shape[-1] == 1:
        return torch.zeros(len(logits))
    two = logits.topk(2).values
    return two[:, 0] - two[:, 1]


def same_texts(first: list[Tensor], second: list[Tensor]) -> float | None:
    if not first:
        return None
    return sum(torch.equal(one, other) for one, other in zip(first, second, strict=True)) / len(first)


def _number(value: float) -> float:
    """JSON has no infinity and no NaN."""
    return value if value < 1e300 else 1e300


def problems(figures: Figures, allowed: Limits) -> list[str]:
    """Every limit that is missed, with the figure."""
    missed = []
    if not figures.relative_error <= allowed.relative_error:
        missed.append(
            f"logits differ by {figures.relative_error:.3g} of their size (allowed {allowed.relative_error:.2g})"
        )
    if not figures.kl <= allowed.kl:
        missed.append(f"KL divergence {figures.kl:.3g} (allowed {allowed.kl:.2g})")
    if not figures.max_difference <= allowed.max_difference * figures.scale:
        bound = allowed.max_difference * figures.scale
        missed.append(f"largest difference of a logit {figures.max_difference:.3g} (allowed {bound:.2g})")
    if not figures.top1_decided >= allowed.top1_decided:
        missed.append(
            f"the likeliest class differs at {1 - figures.top1_decided:.1%} of the clear positions (allowed none)"
        )
    if allowed.learnt is not None and figures.learnt is not None and figures.learnt_error is not None:
        off = allowed.learnt + 4 * figures.learnt_error
        if not abs(figures.learnt - 1) <= off:
            missed.append(
                f"it has {figures.learnt:.1%} of what training changed (allowed {1 - off:.1%} to {1 + off:.1%})"
            )
    if allowed.same_text is not None and figures.same_text is not None and figures.same_text < allowed.same_text:
        missed.append(f"{figures.same_text:.0%} of the texts are the same (at least {allowed.same_text:.0%})")
    return missed


def stored_format(folder: Path) -> torch.dtype:
    """The coarsest float format among the weights in the folder."""
    found: set[torch.dtype] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {NAMED[name] for key in file.keys() if (name := file.get_slice(key).get_dtype()) in NAMED}  # noqa: SIM118
    return max(found, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


NAMED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
