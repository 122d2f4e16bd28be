"""What every strategy answers: how the base is loaded, which weights train, how they fold back into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.config.section import Choice

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Strategy(Choice, kind="strategy", default="lora"):
    """Which weights train.

    A strategy gets a plain transformers model and returns the module that trains, with `requires_grad` set on
    exactly what trains; everything else (optimizer, checkpoints, plans, exports) reads `requires_grad` and nothing
    more. `adapt` also runs on the meta device and under ZeRO-3, so it must not read the weights' values or shapes
    (under ZeRO-3 a parameter's shape is `(0,)`; ask the layer: `linear.in_features`).
    """

    makes_adapter: ClassVar[bool] = False
    """Whether `adapt` returns a `peft.PeftModel`, which can be saved apart from its base."""

    def loading(self, dtype: Any) -> dict[str, Any]:
        """What `from_pretrained` is told beyond the model's own settings; `dtype` is the run's torch dtype."""
        return {}

    def adapt(self, model: PreTrainedModel, fresh: Sequence[str] = ()) -> nn.Module:
        """Mark or add what trains; `fresh` names the parameters that were newly made (a task's head): they always train.

        Raises ModelError if nothing would train, or a name matches nothing: it says what was looked for and what there is.
        """
        raise NotImplementedError

    def stage(self, step: int) -> int:
        """Which stage of unfreezing the step belongs to; a new stage trains more, and the engine is opened again for it."""
        return 0

    def last_stage(self, model: nn.Module) -> int:
        """The stage after which nothing more starts to train in this model, however far `stage` counts."""
        return 0

    def unfreeze(self, model: nn.Module, stage: int) -> None:
        """Set `requires_grad` as `stage` wants it (a strategy with one stage has nothing to do)."""

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """The plain transformers model that computes what the trained one does. May change `model` in place."""
        raise NotImplementedError
