"""Models as graphs of tensors, computed by ONNX Runtime, OpenVINO or torch.export's program, in the place of a model.

A graph is opened by its file and fed by the names of its inputs; nothing else that lies beside it is followed. (transformers'
own `ExportedModel.from_pretrained` imports and calls whatever its `export.json` names, so a folder from elsewhere would run
code; peftkit neither writes nor reads that file.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, DynamicCache, EncoderDecoderCache, GenerationConfig, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutput, ModelOutput

from peftkit.errors import ExportError
from peftkit.exporters.runtime import Runtime

PAST, PRESENT = "past_key_values.", "present."
"""How a graph's inputs and outputs are called that hold its cache: `past_key_values.0.key` -> `present.0.key`, (rows, heads,
positions, width), as everyone's exporters call them."""
MODEL, ENCODER, DECODER = "model", "encoder", "decoder"
"""The parts' names: one, or two where a text is read once and another is written."""


class Part:
    """One graph, opened: called with tensors by name, on the CPU."""

    def __init__(self, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
        self.shapes = dict(shapes)
        """Of its inputs; None where they may have any size."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All its outputs, for exactly its inputs."""
        raise NotImplementedError

    @property
    def layers(self) -> int:
        """Of its cache; none if it keeps none."""
        return sum(name.startswith(PAST) and name.endswith(".key") for name in self.shapes)

    def __call__(self, given: Mapping[str, Any], cache: Cache | None = None) -> dict[str, Tensor]:
        """Its outputs, with what was not given filled in: no padding, positions from the left, nothing computed before."""
        known = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        first = next(known[name] for name in ("input_ids", "decoder_input_ids", *known) if name in known)
        rows, before = first.shape[0], 0 if cache is None else cache.get_seq_length()
        feed = {}
        for name, shape in self.shapes.items():
            if name.startswith(PAST):
                feed[name] = self._past(name, rows, cache if before else None)
            elif name in known:
                feed[name] = known[name]
            else:
                feed[name] = filled(name, first, before)
            if len(shape) != feed[name].ndim:
                raise ExportError(f"the graph takes {name} with {len(shape)} axes, and was given {feed[name].ndim}")
        return self.run({name: plain(value) for name, value in feed.items()})

    def _past(self, name: str, rows: int, cache: Cache | None) -> Tensor:
        if cache is None:
            _, heads, _, width = self.shapes[name]
            return torch.zeros(rows, heads or 0, 0, width or 0)
        number, kind = name.removeprefix(PAST).split(".")
        layer = cache.layers[int(number)]
        found: Tensor = layer.keys if kind == "key" else layer.values
        return found


def filled(name: str, first: Tensor, before: int) -> Tensor:
    """An input that was not given, for so many positions `before` those of `first` (rows, ..., positions)."""
    rows, positions = first.shape[:-1], first.shape[-1]
    if name.endswith("attention_mask"):
        return torch.ones(*rows, before + positions, dtype=torch.long)
    if name == "token_type_ids":
        return torch.zeros(*rows, positions, dtype=torch.long)
    if name == "position_ids":
        return torch.arange(before, before + positions).expand(*rows, -1)
    raise ExportError(f"the graph takes {name}, which it was not given")


def plain(value: Tensor) -> Tensor:
    """On the CPU, whole numbers as int64 and others as fp32, in rows one after another."""
    return value.detach().to("cpu", torch.float32 if value.is_floating_point() else torch.int64).contiguous()


class Graph(Runtime):
    """Answers as the model that was traced: one part, or an encoder and a decoder."""

    def __init__(
        self, parts: Mapping[str, Part], config: PreTrainedConfig, generation_config: GenerationConfig | None = None
    ) -> None:
        # A configuration from elsewhere could name attention kernels to be fetched; no graph needs any.
        config._attn_implementation = "eager"
        super().__init__(config, generation_config)
        self.parts = dict(parts)
        self.main = self.parts[DECODER if DECODER in parts else MODEL]
        self.caches = self.main.layers > 0
        self.encoder = Reader(self.parts[ENCODER]) if ENCODER in parts else None

    def get_encoder(self, modality: str | None = None) -> nn.Module | None:
        return self.encoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        encoder_outputs: Any = None,
        **inputs: Any,
    ) -> ModelOutput:
        """Whatever of these the graph does not take has no influence."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **inputs}
        if self.encoder is not None:
            read = encoder_outputs or self.encoder(**given)
            given = {"encoder_hidden_states": read[0], "attention_mask": attention_mask, **inputs}
            past_key_values = getattr(past_key_values, "self_attention_cache", past_key_values)
        found = self.main(given, past_key_values)
        kept = {name: value.to(self.device) for name, value in found.items() if not name.startswith(PRESENT)}
        if self.caches and use_cache:
            kept["past_key_values"] = self._cache(found)
        return ModelOutput(**kept)

    def _cache(self, found: Mapping[str, Tensor]) -> Cache:
        cache = DynamicCache()
        for number in range(self.main.layers):
            layer = DynamicLayer()
            layer.lazy_initialization(found[f"{PRESENT}{number}.key"], found[f"{PRESENT}{number}.value"])
            layer.keys, layer.values = found[f"{PRESENT}{number}.key"], found[f"{PRESENT}{number}.value"]
            cache.layers.append(layer)
        return cache if self.encoder is None else EncoderDecoderCache(cache, DynamicCache())


class Reader(nn.Module):
    """An encoder, where transformers' `generate` expects one."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part
        self.main_input_name = Runtime.main_input_name

    def forward(self, **inputs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.part(inputs)["last_hidden_state"])


class OnnxPart(Part):
    """A graph in ONNX Runtime."""

    def __init__(self, file: Path) -> None:
        program = onnxruntime()
        options = program.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # its own count is of all cores, whoever else has them
        self.session = program.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.outputs = [value.name for value in self.session.get_outputs()]
        super().__init__({value.name: tuple(free(size) for size in value.shape) for value in self.session.get_inputs()})

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self.session.run(self.outputs, {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, found, strict=True)}


def onnxruntime() -> Any:
    """The module, without the telemetry that it sends from its first import on, since 1.3x on Linux as well."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # where something else has imported it before
    return onnxruntime


class OpenVinoPart(Part):
    """A graph in OpenVINO."""

    def __init__(self, file: Path) -> None:
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same first cores
            "INFERENCE_PRECISION_HINT": "f32",  # its own choice is bf16 where the processor has it
        }
        core = openvino().Core()
        self.compiled = core.compile_model(core.read_model(file), "CPU", settings)
        self.request = self.compiled.create_infer_request()
        super().__init__(
            {
                port.get_any_name(): tuple(
                    size.get_length() if size.is_static else None for size in port.get_partial_shape()
                )
                for port in self.compiled.inputs
            }
        )

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Copied in: a cache's tensors are let go of between two calls, and a request would keep looking at them.
        found = self.request.infer({name: value.numpy() for name, value in inputs.items()}, share_inputs=False)
        return {port.get_any_name(): torch.from_numpy(found[port]) for port in self.compiled.outputs}


def openvino() -> Any:
    """The module, without the telemetry that it sends unless a file in the home folder declines it.

    Its converter falls back to a stub where the package of that telemetry cannot be imported.
    """
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # "not there", for this process
    import openvino

    return openvino


class TorchPart(Part):
    """torch.export's program. Opening its file unpickles: only for files that one made oneself or trusts."""

    def __init__(self, file: Path) -> None:
        program = torch.export.load(file)
        # The guards refuse sizes that the program computes all the same (a single token); what it computes there has been
        # compared when it was written.
        self.program = program.module(check_guards=False)
        nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        values = [nodes[name].meta["val"] for name in program.graph_signature.user_inputs]
        _, keywords = torch.utils._pytree.tree_unflatten(values, program.call_spec.in_spec)
        self.order = list(keywords)
        super().__init__({name: tuple(free(size) for size in value.shape) for name, value in flat(keywords)})

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            found = self.program(**{root: nested(inputs, root) for root in self.order})
        return dict(flat(found))


def free(size: Any) -> int | None:
    """A size that is fixed, else none (where it has a name)."""
    return size if isinstance(size, int) else None


def nested(inputs: Mapping[str, Tensor], root: str) -> Any:
    """What is called `root`, or the tree of all that begins with it: `root.0.key` -> {"0": {"key": ...}}."""
    if root in inputs:
        return inputs[root]
    tree: dict[str, dict[str, Tensor]] = {}
    for name, value in inputs.items():
        if name.startswith(f"{root}."):
            number, kind = name.removeprefix(f"{root}.").split(".")
            tree.setdefault(number, {})[kind] = value
    return tree


def flat(tree: Mapping[str, Any], before: str = "") -> list[tuple[str, Tensor]]:
    """A tree of tensors as pairs: {"0": {"key": ...}} -> ("0.key", ...)."""
    pairs: list[tuple[str, Tensor]] = []
    for name, value in tree.items():
        pairs += flat(value, f"{before}{name}.") if isinstance(value, Mapping) else [(f"{before}{name}", value)]
    return pairs


def open_graph(part: Callable[[Path], Part], folder: Path, pattern: str) -> Graph:
    """The graphs in the folder, whose files are called `pattern`; ExportError if there are none, or they are damaged."""
    files = {name: folder / pattern.format(name) for name in (MODEL, ENCODER, DECODER)}
    there = {name: file for name, file in files.items() if file.is_file()}
    if not {MODEL} <= there.keys() and not {ENCODER, DECODER} <= there.keys():
        raise ExportError(f"{folder} has no {files[MODEL].name}")
    config = AutoConfig.from_pretrained(folder)
    written = (folder / "generation_config.json").is_file()
    try:
        parts = {name: part(file) for name, file in there.items()}
    except Exception as problem:  # each runtime has exceptions of its own
        said = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise ExportError(f"the graph in {folder} cannot be opened: {said}") from problem
    graph = Graph(parts, config, GenerationConfig.from_pretrained(folder) if written else None)
    graph.eval()
    return graph
