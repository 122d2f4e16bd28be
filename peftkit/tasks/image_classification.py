"""A label for an image: ViT, ResNet, ConvNeXt, EfficientNet and whatever else transformers classifies images with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr

from peftkit.tasks import pictures
from peftkit.tasks.base import Batch, Features, Row
from peftkit.tasks.batch_norm import hold_statistics
from peftkit.tasks.classification import Classification

if TYPE_CHECKING:
    from random import Random

    from torch import nn


class ImageClassification(Classification, name="image_classification"):
    """Learn the `label` of an `image` (a file's path): one label, several, or numbers.

    Norms over the batch (BatchNorm, in ResNet and EfficientNet) keep the statistics that the base was trained with: in
    training mode they take the mean over the micro-batch, and a step would hang on how it is split.
    """

    reads: ClassVar[Literal["text", "image", "audio"]] = "image"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("image", "img", "file", "path", "photo", "picture", "pixels"),
        "label": ("label", "labels", "class", "category", "target", "fine_label"),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("image", "label"),)
    lengths: ClassVar[tuple[str, ...]] = ()

    late: ClassVar[tuple[str, ...]] = (*Classification.late, "flip", "crop", "batch_statistics")

    flip: Annotated[float, Field(ge=0, le=1)] = 0
    """The chance that an image is mirrored, left for right, each time that it is learnt; 0.5 where that keeps the label."""
    crop: Annotated[float, Field(ge=0, lt=1)] = 0
    """Each time that an image is learnt, a part of it is cut out, whose sides are shorter by up to this share; 0.2 is mild."""
    batch_statistics: bool = False
    """Norms over the batch take the statistics of each micro-batch and learn them, as in training from nothing. A step then
    hangs on how it is split."""

    _alters: bool = PrivateAttr(default=False)

    @property
    def varies(self) -> str:
        return "flips or crops it (--task.flip, --task.crop)" if self.flip or self.crop else ""

    def model_class(self) -> Any:
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification

    def ready(self, model: nn.Module) -> None:
        if not self.batch_statistics:
            hold_statistics(model)

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        label = self.encoded_label(row)
        return {"image": pictures.pixels(row, processor), "labels": label}

    def learning(self) -> Self:
        if not (self.flip or self.crop):
            return self
        altering = self.model_copy()
        altering._alters = True
        return altering

    def vary(self, features: Features, processor: Any, draw: Random) -> Features:
        if not self._alters:
            return features
        return {**features, "image": pictures.altered(features["image"], draw, self.flip, self.crop)}

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        import torch

        pixels = pictures.stacked([row["image"] for row in features], processor)
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in features])}

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        label = self.label_words(features["labels"])
        return [(pictures.described(features["image"]), False), (" -> ", False), (label, True)]

    def conflicts(self, run: Any) -> Iterator[str]:
        yield from super().conflicts(run)
        if not pictures.is_there():
            yield f"--task {self.name} {pictures.EXTRA}"
