"""Images as rows hold them -> pixels of the model's size -> what the model reads; Pillow alone, no torchvision.

A picture is decoded, resized and cropped once, with the model's own image processor, and kept in whole numbers of 8 bits
(150 KB for 224 x 224, where the model's own numbers would take 600 KB); scaling and normalising wait for the batch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from peftkit.errors import ModelError
from peftkit.tasks.base import Row, RowError

if TYPE_CHECKING:
    from random import Random

    from torch import Tensor

EXTRA = "needs Pillow: pip install 'peftkit[image]'"
PROBES = ((96, 64), (64, 96))
BOX = dict.fromkeys(("do_resize", "do_center_crop", "do_pad", "do_convert_rgb"), False)
RAW = dict.fromkeys(("do_rescale", "do_normalize", "include_top", "rescale_offset"), False)


def is_there() -> bool:
    """Whether images can be read here."""
    return find_spec("PIL") is not None


def pixels(row: Row, processor: Any) -> Any:
    """The row's image as the processor cuts it, (height, width, 3) of 0 to 255. RowError if it is none."""
    return _cut(opened(row.get("image")), processor, size_of(processor))


def opened(value: Any) -> Any:
    """A Pillow image of a path, of bytes, of {bytes, path} as `datasets` writes it, or of rows of numbers."""
    from PIL import Image, ImageOps

    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        raise RowError("no 'image'")
    if isinstance(value, Image.Image):
        return ImageOps.exif_transpose(value).convert("RGB")
    if isinstance(value, str | bytes):
        return _decoded(value)
    return _of_numbers(value)


def stacked(images: Sequence[Any], processor: Any) -> Tensor:
    """Images of 8 bits as the model reads them, (images, 3, height, width): scaled and normalised by its processor."""
    made = processor(list(images), input_data_format="channels_last", return_tensors="pt", **_known(BOX, processor))
    return made["pixel_values"]  # type: ignore[no-any-return]


def altered(image: Any, draw: Random, flip: float, crop: float) -> Any:
    """The image mirrored with the chance `flip`, and a part of it, smaller by up to the share `crop` a side, in its size."""
    from numpy import ascontiguousarray

    if draw.random() < flip:
        image = image[:, ::-1]
    return _part(ascontiguousarray(image), draw, crop) if crop else ascontiguousarray(image)


def described(image: Any) -> str:
    """`image of 224 x 224`."""
    return f"image of {image.shape[1]} x {image.shape[0]}"


@cache
def size_of(processor: Any) -> tuple[int, ...]:
    """(height, width, 3) of all images that it makes. ModelError if they keep shapes of their own, which no batch holds."""
    from PIL import Image

    shapes = {_boxed(Image.new("RGB", size), processor).shape for size in PROBES}
    if len(shapes) > 1:
        raise ModelError(
            f"the model's image processor ({type(processor).__name__}) makes images of different shapes; give it one size in"
            ' its preprocessor_config.json: "size": {"height": 224, "width": 224}'
        )
    shape: tuple[int, ...] = shapes.pop()
    return shape


def _cut(image: Any, processor: Any, size: tuple[int, ...]) -> Any:
    try:
        made = _boxed(image, processor)
    except Exception as problem:  # a side of one pixel: each processor says it in its own way
        raise RowError(f"its image of {image.width} x {image.height} cannot be resized") from problem
    if made.shape != size:
        raise RowError(f"its image of {image.width} x {image.height} does not get the model's size")
    return made


def _boxed(image: Any, processor: Any) -> Any:
    """(height, width, 3), unsigned 8 bits."""
    made = processor(image, return_tensors="np", **_known(RAW, processor))["pixel_values"][0]
    return made.transpose(1, 2, 0).round().clip(0, 255).astype("uint8")


def _known(words: dict[str, bool], processor: Any) -> dict[str, bool]:
    """Those that the processor takes: it refuses others."""
    kinds = getattr(processor, "valid_kwargs", None)
    takes = vars(processor) if kinds is None else kinds.__annotations__  # of a TypedDict, those that it inherits too
    return {name: value for name, value in words.items() if name in takes}


def _decoded(value: str | bytes) -> Any:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise RowError("its image's file is not there") from None
    except IsADirectoryError:
        raise RowError("its image is a folder") from None
    except UnidentifiedImageError:
        raise RowError("its file cannot be read as an image") from None
    except Image.DecompressionBombError:
        raise RowError("its image has more pixels than are read") from None
    except (OSError, ValueError, SyntaxError, EOFError) as problem:  # Pillow's words for files that break off
        raise RowError(f"its image is broken ({_reason(problem)})") from None


def _reason(problem: Exception) -> str:
    """What Pillow says, unless that names the file."""
    said = str(problem).partition("\n")[0]
    return said if said and "/" not in said else type(problem).__name__


def _of_numbers(value: Any) -> Any:
    import numpy
    from PIL import Image

    try:
        array = numpy.asarray(value)
        if array.ndim not in (2, 3) or not array.size or array.min() < 0 or array.max() > 255:
            raise ValueError
        return Image.fromarray(array.astype(numpy.uint8)).convert("RGB")
    except (TypeError, ValueError):
        raise RowError("'image' is no path and no rows of numbers from 0 to 255") from None


def _part(image: Any, draw: Random, crop: float) -> Any:
    from numpy import asarray
    from PIL import Image

    height, width, _ = image.shape
    share = 1 - draw.random() * crop
    left, top = (draw.random() * side * (1 - share) for side in (width, height))
    box = (left, top, left + width * share, top + height * share)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return asarray(resized)
