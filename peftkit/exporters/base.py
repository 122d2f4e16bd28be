"""What every exporter answers: how a trained model is written into a folder, and how anyone opens that folder again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftkit.config.section import Choice
from peftkit.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from peftkit.exporters.runtime import Runtime
    from peftkit.strategies import Strategy
    from peftkit.tasks import Task


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none that can be read."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


@dataclass(frozen=True)
class Reading:
    """What a stranger must know to open an export: plain names and numbers, so that it can be handed to another process."""

    auto_class: str
    """The transformers class, `AutoModelForCausalLM` or a sibling."""
    base: str
    """Hub name or folder of the base model."""
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "float32"
    """The format that the base was loaded in."""
    strategy: dict[str, Any] = field(default_factory=dict)
    """The strategy's settings: they say whether the base is loaded in 4 bits."""
    unquantised: tuple[str, ...] = ()
    """Linear layers of a 4-bit base that are not in 4 bits (its head)."""
    labels: dict[int, str] = field(default_factory=dict)
    """A classifier's labels by number; a base that has no head yet must be told."""
    padding: int | None = None
    """The padding token; a decoder that classifies must be told."""
    vocabulary: int | None = None
    """Rows of the input embedding, if tokens were added."""

    @property
    def reader(self) -> tuple[str, str]:
        """The transformers class that reads what lies beside the model, and what its object is called."""
        if "Image" in self.auto_class:
            return "AutoImageProcessor", "processor"
        if "Audio" in self.auto_class:
            return "AutoFeatureExtractor", "extractor"
        speech = "Speech" in self.auto_class or "CTC" in self.auto_class
        return ("AutoProcessor", "processor") if speech else ("AutoTokenizer", "tokenizer")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """ValueError for what no export says: the names are looked up in torch and transformers."""
        if not re.fullmatch(r"AutoModel\w*", values["auto_class"]) or not re.fullmatch(
            r"b?float(16|32|64)", values["dtype"]
        ):
            raise ValueError(f"{values['auto_class']!r} in {values['dtype']!r} is no way to open a model")
        labels = {int(number): label for number, label in values["labels"].items()}
        return cls(**{**values, "labels": labels, "unquantised": tuple(values["unquantised"])})


class Exporter(Choice, kind="exporter", default="merged"):
    """What is deployed.

    It writes into a new folder; the flow verifies that folder in a fresh process and renames it. `write` may change the
    model in place if `keeps_model` says so.
    """

    needs_adapter: ClassVar[bool] = False
    """Whether only strategies that make an adapter can be exported this way."""
    keeps_model: ClassVar[bool] = True
    """Whether the model is the same after `write`."""
    packages: ClassVar[tuple[str, ...]] = ()
    """The modules that it needs besides peftkit's own, and `extra` is what of peftkit's installs them."""
    extra: ClassVar[str] = ""
    runs_code: ClassVar[bool] = False
    """Whether opening what it wrote can run code that lies in it; then whoever opens it must allow that."""

    @property
    def tolerance(self) -> float | None:
        """What its logits may differ by, in parts of their size; None: by what rounding to the stored format costs."""
        return None

    def stored(self, reading: Reading) -> str:
        """The format of its weights, where that is none of torch's; empty: the coarsest among its safetensors."""
        return ""

    def ready(self) -> None:
        """ConfigError if a package that it needs is not installed. Asked before anything heavy."""
        lacking = [name for name in self.packages if find_spec(name) is None]
        if lacking:
            raise ConfigError(
                f"--to {self.name} needs {' and '.join(lacking)}, which is not installed: pip install 'peftkit[{self.extra}]'"
            )

    def refuses(self, task: Task, config: Any, strategy: Strategy) -> str:
        """Why it does not serve this task, this architecture (a transformers configuration) or this strategy, in a phrase that
        follows `--to NAME: `; empty if it does. Asked before anything is loaded but the configuration."""
        return ""

    def write(
        self, model: nn.Module, strategy: Strategy, folder: Path, reading: Reading, sample: Mapping[str, Any]
    ) -> None:
        """Write weights and configuration of the adapted `model` into the existing `folder`, where its tokenizer lies already.

        `sample` is a batch of the task's inputs (keywords of the model's forward), for exporters that trace the model.
        """
        raise NotImplementedError

    def open(self, folder: Path, reading: Reading) -> PreTrainedModel | Runtime:
        """Load what `write` wrote by what will serve it: transformers and peft alone, or another program (a `Runtime`)."""
        raise NotImplementedError

    def example(self, folder: str, reading: Reading) -> str:
        """The Python lines of the model card that open it."""
        raise NotImplementedError


def coarse(kind: str, reading: Reading) -> str:
    """A format of few bits, as a certificate names it: what was trained on a base in 4 bits is rounded to it a second time."""
    first = reading.strategy.get("quant_type")
    return f"{kind} (rounded a second time: the base was in {first})" if first else kind


def widen(model: nn.Module) -> None:
    """Cast all weights but packed 4-bit ones to fp32."""
    for parameter in model.parameters():
        if not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.float()
