"""How the same numbers are computed with less work and memory. Nothing here changes what is learnt, but for rounding."""

from __future__ import annotations

from typing import ClassVar, Literal

from peftkit.config.section import Section

Way = Literal["auto", "on", "off"]
"""auto: where it holds and pays; on: an error where it does not hold; off: never."""


class Speed(Section):
    """How the same numbers are computed with less work and memory."""

    shorthand: ClassVar[str | None] = "mode"

    mode: Literal["auto", "plain"] = "auto"
    """plain switches all of it off: transformers', PEFT's and torch's own paths, as a reference."""

    kernels: Way = "auto"
    """Compute every matrix product by the kernel that is fastest for its shape on this processor, as timed once."""

    lora: Way = "auto"
    """Compute a layer and its LoRA adapter as one, without what PEFT computes in between."""

    unpad: Way = "auto"
    """Keep padding out of the layers: each row's tokens are computed and looked at alone, one row behind the other."""

    head: Way = "auto"
    """The output layer at the positions of targets alone, a block of them at a time and with the loss in it: its memory does not
    grow with the vocabulary. Not for R-Drop, which compares whole distributions."""

    norm: Way = "auto"
    """An RMSNorm and its gradient in few passes over the states, of which none is kept twice: on a CPU."""

    liger: Way = "auto"
    """Norms and gated layers by Liger's kernels, each in one pass over the states: on a GPU, if liger-kernel is installed."""

    compile: bool = False
    """Let torch.compile make one kernel of each norm that is written out in torch. It takes a C++ compiler, and seconds in the
    first steps."""

    prefetch: Way = "auto"
    """Make the next steps' batches in a thread while a step is computed."""

    def way(self, name: str) -> Way:
        """What is asked of the setting `name`, once `mode` has had its say."""
        chosen: Way = getattr(self, name)
        return "off" if self.mode == "plain" and chosen == "auto" else chosen
