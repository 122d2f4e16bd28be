"""A label for a sound: Wav2Vec2, HuBERT, Whisper's encoder and whatever else transformers classifies sounds with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import NonNegativeFloat, PositiveFloat

from peftkit.tasks import sounds
from peftkit.tasks.base import Batch, Features, Row
from peftkit.tasks.batch_norm import hold_statistics
from peftkit.tasks.classification import Classification

if TYPE_CHECKING:
    from torch import nn


class AudioClassification(Classification, name="audio_classification"):
    """Learn the `label` of a sound (`audio`, a file's path): one label, several, or numbers."""

    reads: ClassVar[Literal["text", "image", "audio"]] = "audio"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "audio": ("audio", "file", "path", "wav", "sound", "speech"),
        "label": ("label", "labels", "class", "category", "target", "intent"),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("audio", "label"),)
    late: ClassVar[tuple[str, ...]] = (*Classification.late, "time_mask")
    lengths: ClassVar[tuple[str, ...]] = ()

    seconds: PositiveFloat = 30
    """The first so many seconds of a sound are heard."""
    time_mask: NonNegativeFloat = 0
    """Share of the sound that is hidden from the model while it trains (SpecAugment, Park et al., 2019); 0.05 is usual."""
    pad_to: NonNegativeFloat | None = None
    """Seconds that each sound is padded to; 0 pads to the longest beside it. Left out: 0, or the longest training sound
    where the model hears the padding (wav2vec2-base)."""

    def bind(self, config: Any) -> Self:
        return self.model_copy(update=sounds.padding(config, self.pad_to))

    def fit(self, rows: Sequence[Row]) -> Self:
        fitted = super().fit(rows)
        if self.pad_to is not None:
            return fitted
        return fitted.model_copy(update={"pad_to": min(self.seconds, sounds.longest(rows))})

    @property
    def varies(self) -> str:
        return "hides other parts of a sound each time"

    def model_class(self) -> Any:
        from transformers import AutoModelForAudioClassification

        return AutoModelForAudioClassification

    def model_options(self) -> dict[str, Any]:
        return {**super().model_options(), **sounds.masking(self.time_mask)}

    def ready(self, model: nn.Module) -> None:
        hold_statistics(model)

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        label = self.encoded_label(row)
        return {"audio": sounds.samples(row, processor, self.seconds), "labels": label}

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        import torch

        heard = sounds.stacked([row["audio"] for row in features], processor, self.pad_to or 0)
        return {**heard, "labels": torch.tensor([row["labels"] for row in features])}

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        label = self.label_words(features["labels"])
        return [(sounds.described(features["audio"], processor), False), (" -> ", False), (label, True)]

    def conflicts(self, run: Any) -> Iterator[str]:
        yield from super().conflicts(run)
        if not sounds.is_there():
            yield f"--task {self.name} {sounds.EXTRA}"
