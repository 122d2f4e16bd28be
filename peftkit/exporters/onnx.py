"""ONNX, computed by ONNX Runtime (https://onnxruntime.ai): on most machines, from most languages, and in browsers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.exporters.traced import Traced

if TYPE_CHECKING:
    from torch import nn

    from peftkit.exporters.graphs import Part


ANSWERING = """
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, or it reports to its maker

import onnxruntime
from transformers import READER

GIVEN
session = onnxruntime.InferenceSession("FOLDER/model.onnx")
found = session.run(None, {one.name: given[one.name] for one in session.get_inputs()})
print({one.name: value for one, value in zip(session.get_outputs(), found)})
"""
WRITING = """
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, or it reports to its maker

import numpy
import onnxruntime
from transformers import READER

GIVEN
session = onnxruntime.InferenceSession("FOLDER/model.onnx")
takes, gives = session.get_inputs(), [one.name for one in session.get_outputs()]
cache = {one.name: numpy.zeros((1, one.shape[1], 0, one.shape[3]), "float32") for one in takes if "past" in one.name}
text = new = given["input_ids"]
for _ in range(20):
    positions = numpy.arange(text.shape[1] - new.shape[1], text.shape[1])[None]
    given = {"input_ids": new, "attention_mask": numpy.ones_like(text), "position_ids": positions, **cache}
    found = dict(zip(gives, session.run(gives, {one.name: given[one.name] for one in takes})))
    cache = {name.replace("present", "past_key_values"): found[name] for name in gives if "present" in name}
    text = numpy.concatenate([text, found["logits"][:, -1:].argmax(-1)], axis=1)
    new = text[:, -1:] if cache else text
print(tokenizer.decode(text[0]))
"""
TRANSLATING = """
import json
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, or it reports to its maker

import numpy
import onnxruntime
from transformers import READER

GIVEN
encoder = onnxruntime.InferenceSession("FOLDER/encoder.onnx")
decoder = onnxruntime.InferenceSession("FOLDER/decoder.onnx")
(read,) = encoder.run(None, {one.name: given[one.name] for one in encoder.get_inputs()})
takes, gives = decoder.get_inputs(), [one.name for one in decoder.get_outputs()]
cache = {one.name: numpy.zeros((1, one.shape[1], 0, one.shape[3]), "float32") for one in takes if "past" in one.name}
text = numpy.array([[json.load(open("FOLDER/config.json"))["decoder_start_token_id"]]])
for _ in range(20):
    feed = {"attention_mask": given["attention_mask"], "encoder_hidden_states": read, "decoder_input_ids": text[:, -1:], **cache}
    found = dict(zip(gives, decoder.run(gives, {one.name: feed[one.name] for one in takes})))
    cache = {name.replace("present", "past_key_values"): found[name] for name in gives if "present" in name}
    text = numpy.concatenate([text, found["logits"][:, -1:].argmax(-1)], axis=1)
print(tokenizer.decode(text[0]))
"""


class Onnx(Traced, name="onnx"):
    """A graph for ONNX Runtime: model.onnx, and its weights in model.onnx.data."""

    extra: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    pattern: ClassVar[str] = "{}.onnx"
    answering: ClassVar[str] = ANSWERING
    writing: ClassVar[str] = WRITING
    translating: ClassVar[str] = TRANSLATING

    def part(self) -> Callable[[Path], Part]:
        from peftkit.exporters.graphs import OnnxPart

        return OnnxPart

    def trace(self, module: nn.Module, inputs: dict[str, Any], sizes: dict[str, Any], file: Path) -> None:
        from peftkit.exporters.graphs import onnxruntime

        onnxruntime()  # first of all: it keeps the telemetry out
        from transformers.exporters import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter

        program, _ = OnnxExporter().export_program(module, inputs, OnnxConfig(dynamic_shapes=sizes))
        OnnxExporter.save_program(program, file)
