"""OpenVINO (https://docs.openvino.ai): fast on processors and graphics of Intel's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.exporters.traced import Traced

if TYPE_CHECKING:
    from torch import nn

    from peftkit.exporters.graphs import Part


ANSWERING = """
import sys
sys.modules["openvino_telemetry"] = None  # before the import, or it reports to its maker

import openvino
from transformers import READER

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}  # or processors that have bf16 compute in it
GIVEN
model = openvino.Core().compile_model("FOLDER/openvino_model.xml", "CPU", EXACT)
found = model({port.any_name: given[port.any_name] for port in model.inputs})
print({port.any_name: value for port, value in found.items()})
"""
WRITING = """
import sys
sys.modules["openvino_telemetry"] = None  # before the import, or it reports to its maker

import numpy
import openvino
from transformers import READER

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}  # or processors that have bf16 compute in it
GIVEN
model = openvino.Core().compile_model("FOLDER/openvino_model.xml", "CPU", EXACT)
takes = {port.any_name: port.partial_shape for port in model.inputs}
sizes = {name: (1, shape[1].get_length(), 0, shape[3].get_length()) for name, shape in takes.items() if "past" in name}
cache = {name: numpy.zeros(size, "float32") for name, size in sizes.items()}
text = new = given["input_ids"]
for _ in range(20):
    positions = numpy.arange(text.shape[1] - new.shape[1], text.shape[1])[None]
    given = {"input_ids": new, "attention_mask": numpy.ones_like(text), "position_ids": positions, **cache}
    found = {port.any_name: value for port, value in model({name: given[name] for name in takes}).items()}
    cache = {name.replace("present", "past_key_values"): value for name, value in found.items() if "present" in name}
    text = numpy.concatenate([text, found["logits"][:, -1:].argmax(-1)], axis=1)
    new = text[:, -1:] if cache else text
print(tokenizer.decode(text[0]))
"""
TRANSLATING = """
import json
import sys
sys.modules["openvino_telemetry"] = None  # before the import, or it reports to its maker

import numpy
import openvino
from transformers import READER

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}  # or processors that have bf16 compute in it
GIVEN
encoder = openvino.Core().compile_model("FOLDER/openvino_encoder.xml", "CPU", EXACT)
decoder = openvino.Core().compile_model("FOLDER/openvino_decoder.xml", "CPU", EXACT)
read = encoder({port.any_name: given[port.any_name] for port in encoder.inputs})[0]
takes = {port.any_name: port.partial_shape for port in decoder.inputs}
sizes = {name: (1, shape[1].get_length(), 0, shape[3].get_length()) for name, shape in takes.items() if "past" in name}
cache = {name: numpy.zeros(size, "float32") for name, size in sizes.items()}
text = numpy.array([[json.load(open("FOLDER/config.json"))["decoder_start_token_id"]]])
for _ in range(20):
    feed = {"attention_mask": given["attention_mask"], "encoder_hidden_states": read, "decoder_input_ids": text[:, -1:], **cache}
    found = {port.any_name: value for port, value in decoder({name: feed[name] for name in takes}).items()}
    cache = {name.replace("present", "past_key_values"): value for name, value in found.items() if "present" in name}
    text = numpy.concatenate([text, found["logits"][:, -1:].argmax(-1)], axis=1)
print(tokenizer.decode(text[0]))
"""


class OpenVino(Traced, name="openvino"):
    """A graph for OpenVINO: openvino_model.xml, and its weights in openvino_model.bin."""

    extra: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    pattern: ClassVar[str] = "openvino_{}.xml"
    answering: ClassVar[str] = ANSWERING
    writing: ClassVar[str] = WRITING
    translating: ClassVar[str] = TRANSLATING

    def part(self) -> Callable[[Path], Part]:
        from peftkit.exporters.graphs import OpenVinoPart

        return OpenVinoPart

    def trace(self, module: nn.Module, inputs: dict[str, Any], sizes: dict[str, Any], file: Path) -> None:
        from peftkit.exporters.graphs import openvino

        openvino()  # first of all: it keeps the telemetry out
        from transformers.exporters import OpenVINOConfig
        from transformers.exporters.exporter_openvino import OpenVINOExporter

        program, _ = OpenVINOExporter().export_program(module, inputs, OpenVINOConfig(dynamic_shapes=sizes))
        OpenVINOExporter.save_program(program, file)
