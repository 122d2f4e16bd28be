"""What the exporters share that write a model as a graph of tensors, for another program to compute: onnx, openvino, torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.exporters.base import Exporter, Reading

if TYPE_CHECKING:
    from torch import nn

    from peftkit.exporters.graphs import Part
    from peftkit.exporters.runtime import Runtime
    from peftkit.strategies import Strategy
    from peftkit.tasks import Task


class Traced(Exporter):
    """Merged weights in fp32, and the graph that transformers' exporters make of the model's code.

    Any number of rows and positions; a model that writes keeps a cache between its tokens.
    """

    keeps_model: ClassVar[bool] = False
    arrays: ClassVar[str] = "np"
    """What the card's tokenizer gives: `np` or `pt`."""
    answering: ClassVar[str] = ""
    """The card's lines that compute what was `given`; FOLDER stands for the folder."""
    writing: ClassVar[str] = ""
    """Those that continue a text, with a cache."""
    translating: ClassVar[str] = ""
    """Those of an encoder and a decoder."""
    pattern: ClassVar[str] = ""
    """How a part's file is called, `{}` being the part's name: `model`, or `encoder` and `decoder`."""

    def refuses(self, task: Task, config: Any, strategy: Strategy) -> str:
        if not type(config).__module__.startswith("transformers."):
            return f"a model with Python code of its own ({type(config).__name__}) is not traced; export it --to merged"
        kind = task.model_class().__name__
        if kind == "AutoModelForSpeechSeq2Seq":
            return "writing down speech is a loop of its own, which no graph holds; export it --to merged"
        if kind == "AutoModelForSequenceClassification" and config.is_encoder_decoder:
            return f"a {config.model_type} that classifies looks for each row's last token in Python; export it --to merged"
        return ""

    def example(self, folder: str, reading: Reading) -> str:
        kinds = {"AutoModelForCausalLM": self.writing, "AutoModelForSeq2SeqLM": self.translating}
        lines = kinds.get(reading.auto_class, self.answering)
        reader, called = reading.reader
        opened = f"{called} = {reader}.from_pretrained({json.dumps(folder)})\n{asked(reading, called, self.arrays)}"
        return lines.strip().replace("READER", reader).replace("GIVEN", opened).replace("FOLDER", folder)

    def write(
        self, model: nn.Module, strategy: Strategy, folder: Path, reading: Reading, sample: Mapping[str, Any]
    ) -> None:
        """Raises ExportError if the model cannot be traced, or if its graph answers otherwise than the model anywhere."""
        from peftkit.exporters.tracing import merged_model, write_graphs

        self.ready()
        write_graphs(
            self.trace, self.part(), self.pattern, merged_model(model, strategy, reading, folder), folder, sample
        )

    def open(self, folder: Path, reading: Reading) -> Runtime:
        """Raises ExportError if there is no graph, or one that the program does not open."""
        from peftkit.exporters.graphs import open_graph

        self.ready()
        return open_graph(self.part(), folder, self.pattern)

    def part(self) -> Callable[[Path], Part]:
        """What opens one of its files."""
        raise NotImplementedError

    def trace(self, module: nn.Module, inputs: dict[str, Any], sizes: dict[str, Any], file: Path) -> None:
        """Write the graph of a module for these inputs, of which `sizes` says which axes have no fixed size (torch.export)."""
        raise NotImplementedError


def asked(reading: Reading, called: str, arrays: str) -> str:
    """The line that reads a row as the model takes it."""
    kind = reading.auto_class.removeprefix("AutoModelFor")
    if kind in ("CausalLM", "Seq2SeqLM"):
        return f'given = {called}("A text", return_tensors="{arrays}")'
    if kind == "ImageClassification":
        return f'given = {called}(image, return_tensors="{arrays}")  # PIL.Image.open("picture.png")'
    if kind in ("AudioClassification", "CTC"):
        return f'given = {called}(sound, sampling_rate=16_000, return_tensors="{arrays}")  # an array, mono'
    words = {
        "QuestionAnswering": '"A question?", "A text that answers it."',
        "MultipleChoice": '["A question?"] * 2, ["no", "yes"]',
    }
    if kind == "MultipleChoice":
        read = f'{called}({words[kind]}, padding=True, return_tensors="{arrays}")'
        return f"given = {{name: value[None] for name, value in {read}.items()}}"
    return f'given = {called}({words.get(kind, chr(34) + "A text." + chr(34))}, return_tensors="{arrays}")'
