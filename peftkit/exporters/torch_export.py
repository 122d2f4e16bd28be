"""torch.export's program (https://docs.pytorch.org/docs/stable/export.html): torch alone computes it, without the model's code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.errors import ExportError
from peftkit.exporters.base import Reading
from peftkit.exporters.traced import Traced

if TYPE_CHECKING:
    from torch import nn

    from peftkit.exporters.graphs import Part
    from peftkit.exporters.runtime import Runtime
    from peftkit.strategies import Strategy
    from peftkit.tasks import Task


ANSWERING = """
import torch
from transformers import READER

GIVEN
model = torch.export.load("FOLDER/model.pt2").module(check_guards=False)
print(model(**given))
"""
WRITING = """
import torch
from transformers import READER

GIVEN
program = torch.export.load("FOLDER/model.pt2")
model, takes = program.module(check_guards=False), program.example_inputs[1]
cache = {n: {name: value[:1, :, :0] for name, value in layer.items()} for n, layer in takes.get("past_key_values", {}).items()}
text = new = given["input_ids"]
for _ in range(20):
    positions = torch.arange(text.shape[1] - new.shape[1], text.shape[1])[None]
    given = {"input_ids": new, "attention_mask": torch.ones_like(text), "position_ids": positions, "past_key_values": cache}
    found = model(**{name: given[name] for name in takes})
    cache = found.get("present")
    text = torch.cat([text, found["logits"][:, -1:].argmax(-1)], dim=1)
    new = text[:, -1:] if cache else text
print(tokenizer.decode(text[0]))
"""
TRANSLATING = """
import json

import torch
from transformers import READER

GIVEN
encoder = torch.export.load("FOLDER/encoder.pt2").module(check_guards=False)
program = torch.export.load("FOLDER/decoder.pt2")
decoder, takes = program.module(check_guards=False), program.example_inputs[1]
read = encoder(**given)["last_hidden_state"]
cache = {n: {name: value[:1, :, :0] for name, value in layer.items()} for n, layer in takes["past_key_values"].items()}
text = torch.tensor([[json.load(open("FOLDER/config.json"))["decoder_start_token_id"]]])
for _ in range(20):
    feed = {"attention_mask": given["attention_mask"], "encoder_hidden_states": read, "decoder_input_ids": text[:, -1:]}
    feed["past_key_values"] = cache
    found = decoder(**{name: feed[name] for name in takes})
    cache = found["present"]
    text = torch.cat([text, found["logits"][:, -1:].argmax(-1)], dim=1)
print(tokenizer.decode(text[0]))
"""


class Torch(Traced, name="torch"):
    """torch.export's program, which torch computes by itself: model.pt2.

    Opening such a file can run code that it holds, so `eval`, `predict` and others open it only with --model.trust_remote_code.
    """

    pattern: ClassVar[str] = "{}.pt2"
    arrays: ClassVar[str] = "pt"
    answering: ClassVar[str] = ANSWERING
    writing: ClassVar[str] = WRITING
    translating: ClassVar[str] = TRANSLATING
    runs_code: ClassVar[bool] = True

    def refuses(self, task: Task, config: Any, strategy: Strategy) -> str:
        kind = task.model_class().__name__
        if kind == "AutoModelForQuestionAnswering" and config.is_encoder_decoder:
            return f"torch.export fixes the least length that a {config.model_type} answers in; export it --to onnx or openvino"
        return super().refuses(task, config, strategy)

    def open(self, folder: Path, reading: Reading) -> Runtime:
        if not reading.trust_remote_code:
            raise ExportError(
                f"{folder}: opening torch.export's files can run code that they hold; if you made this one or trust"
                " whoever did, allow it with --model.trust_remote_code"
            )
        return super().open(folder, reading)

    def part(self) -> Callable[[Path], Part]:
        from peftkit.exporters.graphs import TorchPart

        return TorchPart

    def trace(self, module: nn.Module, inputs: dict[str, Any], sizes: dict[str, Any], file: Path) -> None:
        from torch.fx.experimental import _config as shapes
        from transformers.exporters import DynamoConfig
        from transformers.exporters.exporter_dynamo import DynamoExporter

        # Or the program refuses every size of 0 or 1: an empty cache, a single token.
        with shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            program, _ = DynamoExporter().export_program(module, inputs, DynamoConfig(dynamic_shapes=sizes))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # where on this machine the code lies is nobody's business
        DynamoExporter.save_program(program, file)
