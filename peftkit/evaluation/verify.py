"""Whether an export is what was trained: opened in a fresh process, from disk alone, and compared on held-out rows.

asked = question(model, task, batches)
expected = answer(model, asked)                      # before the export: a merge changes the model
given = ask_fresh_process(exporter, folder, reading, asked, "cpu")
problems(compare(expected, given, allowed), allowed) # nothing, or why the export is refused

Both sides compute in fp32 whatever they are stored in, so that what differs are the weights and not the arithmetic.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peftkit.errors import ExportError
from peftkit.evaluation.certificate import Figures, Limits
from peftkit.exporters import Exporter
from peftkit.exporters.base import Reading
from peftkit.models.configure import context_limit
from peftkit.models.inspect import inner
from peftkit.strategies.lora import task_type
from peftkit.tasks import Task
from peftkit.tasks.base import IGNORED, Batch

POSITIONS = 512
TOGETHER = 16
"""Positions that are compared at a time: what fp64 takes of a large vocabulary stays small."""
PROMPTS = 4
NEW_TOKENS = 24
LONGEST_PROMPT = 256
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class Question:
    """What both models are asked."""

    inputs: list[dict[str, Any]]
    """Keywords of the model's forward, a batch each."""
    positions: list[Tensor | None]
    """Per batch, which of its logits are compared: a mask over (rows, positions); None takes all."""
    prompts: list[Tensor] = field(default_factory=list)
    """Token ids to be continued."""
    each: bool = False
    """Whether each output is a number or a decision of its own, so that a shift of all of them changes what is said. The
    model that was trained knows; a base under an exported adapter does not."""


@dataclass
class Answer:
    """What a model says."""

    logits: Tensor
    """(positions, classes), fp32."""
    texts: list[Tensor] = field(default_factory=list)


def question(model: nn.Module, task: Task, batches: Sequence[Batch]) -> Question:
    """The held-out rows as both models will see them. At most POSITIONS logits and PROMPTS prompts are asked for."""
    inputs = [task.inputs(batch) for batch in batches]
    masks = [target_mask(model, batch) for batch in batches]
    return Question(inputs, thinned(masks), prompts(model, batches), decides_each(model))


def target_mask(model: nn.Module, batch: Batch) -> Tensor | None:
    """Where the logits are that predict a target, if every position of a row has labels of its own."""
    labels = batch.get("labels")
    if labels is None or labels.ndim != 2 or labels.is_floating_point():
        return None
    mask = labels != IGNORED
    if task_type(plain_model(model)) == "CAUSAL_LM":  # position t - 1 predicts t
        mask = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return mask if mask.any() else None


def thinned(masks: list[Tensor | None]) -> list[Tensor | None]:
    """The masks with at most POSITIONS marks in all, evenly spaced."""
    total = sum(int(mask.sum()) for mask in masks if mask is not None)
    every = -(-total // POSITIONS)
    seen, thin = 0, []
    for mask in masks:
        if mask is not None:
            number = mask.flatten().long().cumsum(0).reshape(mask.shape) - 1 + seen
            seen += int(mask.sum())
            mask = mask & (number % every == 0)
        thin.append(mask)
    return thin


def prompts(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """The beginnings of some rows, up to the first target, for models that write text."""
    plain = plain_model(model)
    if task_type(plain) not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        return []
    limit = context_limit(plain.config) or LONGEST_PROMPT + NEW_TOKENS
    room = max(1, min(LONGEST_PROMPT, limit - NEW_TOKENS))
    rows = [prompt(batch, row) for batch in batches if "input_ids" in batch for row in range(len(batch["input_ids"]))]
    return [ids[-room:] for ids in rows[:PROMPTS] if len(ids)]


def prompt(batch: Batch, row: int) -> Tensor:
    ids = batch["input_ids"][row]
    mask = batch.get("attention_mask")
    kept = mask[row].bool() if mask is not None and mask.ndim == 2 else torch.ones_like(ids, dtype=torch.bool)
    labels = batch.get("labels")
    if labels is not None and labels.shape == batch["input_ids"].shape:
        counted = (labels[row] != IGNORED).nonzero()
        first = int(counted[0]) if len(counted) else len(ids)
        kept = kept & (torch.arange(len(ids), device=ids.device) < max(first, 2))
    return ids[kept]


def answer(model: nn.Module, asked: Question) -> Answer:
    """The model's logits and texts, computed in fp32; the model is left as it was."""
    device = next(model.parameters()).device
    with in_fp32(model), torch.no_grad():
        logits = [
            selected(logits_of(model(**on(device, inputs))), positions)
            for inputs, positions in zip(asked.inputs, asked.positions, strict=True)
        ]
        texts = [continued(model, ids.to(device)) for ids in asked.prompts]
    found = torch.cat(widened(logits))
    return Answer(found.reshape(-1, 1) if asked.each else found, texts)


def decides_each(model: nn.Module) -> bool:
    return getattr(plain_model(model).config, "problem_type", None) in ("multi_label_classification", "regression")


def on(device: torch.device, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def logits_of(outputs: Any) -> Tensor:
    """(rows, ..., classes); the two of an extractive answer one above the other, their classes being positions."""
    if "logits" in outputs:
        logits: Tensor = outputs.logits
        return logits
    return torch.stack([value for name, value in outputs.items() if name.endswith("logits")], dim=1)


def widened(logits: Sequence[Tensor]) -> list[Tensor]:
    """All with as many classes as the widest: where the classes are a text's positions, a shorter one has no others."""
    widest = max(part.shape[-1] for part in logits)
    return [torch.nn.functional.pad(part, (0, widest - part.shape[-1]), value=-torch.inf) for part in logits]


def selected(logits: Tensor, positions: Tensor | None) -> Tensor:
    if positions is not None and positions.shape == logits.shape[:-1]:
        return logits[positions.to(logits.device)].float().cpu()
    return logits.flatten(0, -2).float().cpu()


def continued(model: Any, ids: Tensor) -> Tensor:
    """What the model writes after `ids`, the likeliest token each time."""
    row = ids[None]
    whole: Tensor = model.generate(
        input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1
    )[0]
    is_decoder = not plain_model(model).config.is_encoder_decoder
    return (whole[len(ids) :] if is_decoder else whole).cpu()


@contextmanager
def in_fp32(model: nn.Module) -> Iterator[None]:
    """Evaluate with fp32 weights and full fp32 products, and put everything back (16-bit -> fp32 -> 16-bit is exact)."""
    training = [(module, module.training) for module in model.modules()]
    precision = torch.get_float32_matmul_precision()
    formats = [(holder, name, tensor.dtype) for holder, name, tensor in floats(model)]
    computing: list[tuple[Any, Any]] = [
        (layer, layer.compute_dtype) for layer in model.modules() if hasattr(layer, "compute_dtype")
    ]
    attention = plain_model(model).config._attn_implementation
    try:
        torch.set_float32_matmul_precision("highest")
        cast(formats, torch.float32)
        for layer, _ in computing:
            layer.compute_dtype = torch.float32
        if attention and "flash" in attention:  # has no fp32
            plain_model(model).set_attn_implementation("sdpa")
        model.eval()
        yield
    finally:
        for module, mode in training:
            module.training = mode
        cast(formats, None)
        for layer, dtype in computing:
            layer.compute_dtype = dtype
        if attention and "flash" in attention:
            plain_model(model).set_attn_implementation(attention)
        torch.set_float32_matmul_precision(precision)


def floats(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Parameters and buffers in a float format, without packed 4-bit weights, with who holds them."""
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.is_floating_point() and not hasattr(tensor, "quant_state"):
                yield module, name, tensor


def cast(formats: list[tuple[nn.Module, str, torch.dtype]], dtype: torch.dtype | None) -> None:
    """Cast to `dtype`, or back to the format noted."""
    for holder, name, own in formats:
        tensor = getattr(holder, name)
        tensor.data = tensor.data.to(dtype or own)


def plain_model(model: nn.Module) -> Any:
    """The transformers model inside."""
    return inner(model)[1]


def limits(stored: torch.dtype, text: bool) -> Limits:
    """What an export with weights in this format may differ by.

    Measured on SmolLM2-135M and on tiny models: kept in fp32, logits differ by the order of sums, 1e-6 of their size.
    Rounding every merged weight to bf16 (7 bits) changes the logits by 0.4 to 0.7 %, to fp16 by 0.06 %. What must be
    refused lies well above: the original 16-bit weights, which differ from the dequantised ones by NF4's rounding, give
    logits that differ by 7 to 30 %. So the tolerance is 2.5 epsilon: 2 % for bf16, 0.24 % for fp16. KL is half the
    variance of the difference under the model's own probabilities, and a language model's logits spread over 2 to 5;
    hence 12 times the square. The likeliest class may change only where the model itself wavers.
    """
    relative = max(1e-4, 2.5 * torch.finfo(stored).eps)
    exact = stored in (torch.float32, torch.float64)
    return Limits(
        kl=12 * relative**2,
        top1_decided=1.0,
        relative_error=relative,
        max_difference=20 * relative,
        # One rounding may turn a word where two are as likely, and then the rest of the text differs.
        same_text=0.5 if exact and text else None,
    )


def compare(reference: Answer, export: Answer, allowed: Limits) -> Figures:
    """How far `export` is from `reference`."""
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
    return Figures(
        kl=_number(max(0.0, float(divergences.mean()))),
        top1=float(same.double().mean()),
        top1_decided=float(same[decided].double().mean()) if decided.any() else 1.0,
        relative_error=_number(float(errors.mean().sqrt()) / max(scale, 1e-12)),
        max_difference=_number(float(largest.max())),
        scale=scale,
        same_text=same_texts(reference.texts, export.texts),
    )


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


def ask_fresh_process(exporter: Exporter, folder: Path, reading: Reading, asked: Question, device: str) -> Answer:
    """Open the export in a new Python process and ask it. Raises ExportError if it cannot be opened or run."""
    with tempfile.TemporaryDirectory(prefix="peftkit-verify-") as name:
        desk = Path(name)
        write_request(desk, exporter, folder, reading, asked, device)
        words = [sys.executable, "-m", "peftkit.evaluation.verify", str(desk)]
        done = subprocess.run(words, env=own_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.strip().splitlines() if line.strip()][-12:]
            raise ExportError(
                f"the export in {folder} cannot be opened or run (exit code {done.returncode}):\n" + "\n".join(said)
            )
        return read_answer(desk)


def own_environment() -> dict[str, str]:
    """This process's environment without the launcher's, and with peftkit on the path if it is not installed."""
    root = str(Path(__file__).parents[2])
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths)}


def write_request(desk: Path, exporter: Exporter, folder: Path, reading: Reading, asked: Question, device: str) -> None:
    tensors: dict[str, Tensor] = {}
    others: list[dict[str, Any]] = []
    for number, (inputs, positions) in enumerate(zip(asked.inputs, asked.positions, strict=True)):
        split = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        others.append({name: value for name, value in inputs.items() if name not in split})
        tensors |= {f"inputs.{number}.{name}": value for name, value in split.items()}
        if positions is not None:
            tensors[f"positions.{number}"] = positions
    tensors |= {f"prompts.{number}": ids for number, ids in enumerate(asked.prompts)}
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        desk / "question.safetensors",
    )
    request = {
        "exporter": exporter.model_dump(mode="json"),
        "folder": str(folder.absolute()),
        "reading": reading.to_json(),
        "device": device,
        "others": others,
        "prompts": len(asked.prompts),
        "each": asked.each,
    }
    (desk / "request.json").write_text(json.dumps(request))


def read_question(desk: Path, request: Mapping[str, Any]) -> Question:
    tensors = load_file(desk / "question.safetensors")
    inputs, positions = [], []
    for number, others in enumerate(request["others"]):
        start = f"inputs.{number}."
        inputs.append(
            {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)} | others
        )
        positions.append(tensors.get(f"positions.{number}"))
    texts = [tensors[f"prompts.{number}"] for number in range(request["prompts"])]
    return Question(inputs, positions, texts, request["each"])


def read_answer(desk: Path) -> Answer:
    tensors = load_file(desk / "answer.safetensors")
    return Answer(tensors.pop("logits"), [tensors[f"texts.{number}"] for number in range(len(tensors))])


def main(desk: Path) -> None:
    """The fresh process: open the export, answer, write the answer down."""
    from peftkit.strategies.qlora import guard

    request = json.loads((desk / "request.json").read_text())
    exporter = Exporter.model_validate(request["exporter"])
    reading = Reading.from_json(request["reading"])
    model = exporter.open(Path(request["folder"]), reading)
    if getattr(plain_model(model), "is_quantized", False):
        guard(model)
    elif request["device"] != "cpu":
        model = model.to(request["device"])
    given = answer(model, read_question(desk, request))
    tensors = {"logits": given.logits} | {f"texts.{number}": text for number, text in enumerate(given.texts)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, desk / "answer.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
