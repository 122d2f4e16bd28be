"""An export in a new Python process: opened from disk alone, by what will serve it, asked, scored and timed.

answer = ask_fresh_process(exporter, folder, reading, Errand(asked), "cpu").answer
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peftkit.config.sections import Generate
from peftkit.config.sections import Model as ModelSettings
from peftkit.errors import ExportError
from peftkit.evaluation.certificate import PACKAGES, versions
from peftkit.evaluation.held import recorded
from peftkit.evaluation.speed import Speed, speed
from peftkit.evaluation.verify import Answer, Question, answer, plain_model
from peftkit.exporters import Exporter
from peftkit.exporters.base import Reading
from peftkit.metrics.base import Record
from peftkit.tasks import Task

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
MODULES = {"llama-cpp-python": "llama_cpp"}
"""Packages whose module has another name."""
Tensors = dict[str, Tensor]


@dataclass
class Errand:
    """What a fresh process is sent for."""

    asked: Question
    probe: Question | None = None
    batches: Sequence[tuple[Sequence[int], Mapping[str, Any]]] = ()
    """Held-out rows to be scored, a batch each, behind the numbers of their windows."""
    task: Task | None = None
    """Scores them."""
    generate: Generate | None = None
    """How texts are written for the scores, if they need any."""
    times: bool = False
    """Whether its speed is measured on the first batch of what is asked."""


@dataclass
class Report:
    """What it comes back with."""

    answer: Answer
    probe: Answer | None
    records: list[tuple[int, Record]]
    load_seconds: float
    speed: Speed
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that it took to answer, and Python's."""


def ask_fresh_process(exporter: Exporter, folder: Path, reading: Reading, errand: Errand, device: str) -> Report:
    """Open the export in a new Python process and ask it. Raises ExportError if it cannot be opened or run."""
    with tempfile.TemporaryDirectory(prefix="peftkit-verify-") as name:
        desk = Path(name)
        write_request(desk, exporter, folder, reading, errand, device)
        words = [sys.executable, "-m", "peftkit.evaluation.fresh", str(desk)]
        done = subprocess.run(words, env=own_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.strip().splitlines() if line.strip()][-12:]
            raise ExportError(
                f"the export in {folder} cannot be opened or run (exit code {done.returncode}):\n" + "\n".join(said)
            )
        return read_report(desk)


def own_environment() -> dict[str, str]:
    """This process's environment without the launcher's, and with peftkit on the path if it is not installed."""
    root = str(Path(__file__).parents[2])
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths)}


def write_request(desk: Path, exporter: Exporter, folder: Path, reading: Reading, errand: Errand, device: str) -> None:
    tensors: Tensors = {}
    request = {
        "exporter": exporter.model_dump(mode="json"),
        "folder": str(folder.absolute()),
        "reading": reading.to_json(),
        "device": device,
        "asked": put_question(errand.asked, "asked.", tensors),
        "probe": put_question(errand.probe, "probe.", tensors) if errand.probe else None,
        "windows": [list(numbers) for numbers, _ in errand.batches],
        "batches": [put(batch, f"batches.{at}.", tensors) for at, (_, batch) in enumerate(errand.batches)],
        "task": errand.task.model_dump(mode="json") if errand.task else None,
        "generate": errand.generate.model_dump(mode="json") if errand.generate else None,
        "times": errand.times,
    }
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        desk / "request.safetensors",
    )
    (desk / "request.json").write_text(json.dumps(request))


def put_question(asked: Question, start: str, tensors: Tensors) -> dict[str, Any]:
    """The question's tensors among `tensors`, under names that begin with `start`; what else it says."""
    others = [put(inputs, f"{start}inputs.{at}.", tensors) for at, inputs in enumerate(asked.inputs)]
    marked = {at: mask for at, mask in enumerate(asked.positions) if mask is not None}
    tensors |= {f"{start}positions.{at}": mask for at, mask in marked.items()}
    tensors |= {f"{start}prompts.{at}": ids for at, ids in enumerate(asked.prompts)}
    return {"others": others, "prompts": len(asked.prompts), "each": asked.each, "words": asked.words}


def put(values: Mapping[str, Any], start: str, tensors: Tensors) -> dict[str, Any]:
    """The tensors among `values` go to `tensors`; the others are given back."""
    split = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    tensors |= {start + name: value for name, value in split.items()}
    return {name: value for name, value in values.items() if name not in split}


def take(others: Mapping[str, Any], start: str, tensors: Tensors) -> dict[str, Any]:
    found = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    return {**found, **others}


def take_question(said: Mapping[str, Any], start: str, tensors: Tensors) -> Question:
    inputs = [take(others, f"{start}inputs.{at}.", tensors) for at, others in enumerate(said["others"])]
    positions = [tensors.get(f"{start}positions.{at}") for at in range(len(inputs))]
    texts = [tensors[f"{start}prompts.{at}"] for at in range(said["prompts"])]
    return Question(inputs, positions, texts, said["each"], said["words"])


def write_report(desk: Path, report: Report) -> None:
    tensors: Tensors = {}
    for name, given in (("answer", report.answer), ("probe", report.probe)):
        if given is not None:
            tensors |= {f"{name}.logits": given.logits}
            tensors |= {f"{name}.texts.{at:04}": text for at, text in enumerate(given.texts)}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, desk / "report.safetensors")
    rest = [report.records, report.load_seconds, report.speed.rows, report.speed.tokens, report.versions]
    (desk / "report.json").write_text(json.dumps(rest, default=lambda value: value.tolist()))


def read_report(desk: Path) -> Report:
    tensors = load_file(desk / "report.safetensors")
    records, load_seconds, rows, tokens, found = json.loads((desk / "report.json").read_text())
    numbered = [(number, record) for number, record in records]
    asked, probed = (take_answer(name, tensors) for name in ("answer", "probe"))
    if asked is None:
        raise ExportError(f"{desk} holds no answer")
    return Report(asked, probed, numbered, load_seconds, Speed(rows, tokens), found)


def take_answer(name: str, tensors: Tensors) -> Answer | None:
    texts = [tensors[key] for key in sorted(tensors) if key.startswith(f"{name}.texts.")]
    return Answer(tensors[f"{name}.logits"], texts) if f"{name}.logits" in tensors else None


def main(desk: Path) -> None:
    """The fresh process: open the export, answer, write the answer down."""
    request = json.loads((desk / "request.json").read_text())
    tensors = load_file(desk / "request.safetensors")
    folder, reading = Path(request["folder"]), Reading.from_json(request["reading"])
    exporter: Exporter = Exporter.model_validate(request["exporter"])
    began = time.perf_counter()
    model = placed(exporter.open(folder, reading), request["device"])
    load_seconds = time.perf_counter() - began
    asked = take_question(request["asked"], "asked.", tensors)
    given = answer(model, asked)
    probed = answer(model, take_question(request["probe"], "probe.", tensors)) if request["probe"] else None
    records = scored(model, request, tensors, folder, reading.trust_remote_code) if request["task"] else []
    took = speed(model, asked.inputs[0], next(iter(asked.prompts), None)) if request["times"] else Speed()
    write_report(desk, Report(given, probed, records, load_seconds, took, used()))


def placed(model: Any, device: str) -> nn.Module:
    """On the device, unless it is packed (then it is there) or another program's; 4-bit weights are kept from being repacked."""
    from peftkit.exporters.runtime import Runtime
    from peftkit.strategies.qlora import guard

    if getattr(plain_model(model), "is_quantized", False):
        guard(model)
    elif device != "cpu" and not isinstance(model, Runtime):
        model = model.to(device)
    found: nn.Module = model
    return found


def scored(
    model: nn.Module, request: Mapping[str, Any], tensors: Tensors, folder: Path, trust: bool
) -> list[tuple[int, Record]]:
    task: Task = Task.model_validate(request["task"])
    generate = Generate.model_validate(request["generate"]) if request["generate"] else None
    batches = [
        (numbers, take(others, f"batches.{at}.", tensors))
        for at, (numbers, others) in enumerate(zip(request["windows"], request["batches"], strict=True))
    ]
    processor = None
    if generate:
        from peftkit.models.processor import load_processor  # it takes seconds to import

        processor = load_processor(ModelSettings(path=str(folder), trust_remote_code=trust), str(folder), task.reads)
    return recorded(model, batches, task, processor, generate)


def used() -> dict[str, str]:
    """Versions of the packages that this process has imported, of Python, and of the machine."""
    names = tuple(name for name in PACKAGES if MODULES.get(name, name) in sys.modules)
    return {"python": platform.python_version(), "machine": platform.machine(), **versions(names)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
