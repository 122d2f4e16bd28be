"""Sounds as rows hold them -> one channel at the model's rate -> what the model reads; by soundfile and scipy alone.

A sound is decoded, mixed down and resampled once, and kept as samples (64 KB a second at 16 kHz; a spectrum of Whisper's
takes 960 KB whatever its length); the model's own feature extractor works on each sound alone, when a batch is made.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.tasks.base import Row, RowError

if TYPE_CHECKING:
    from torch import Tensor

EXTRA = "needs soundfile: pip install 'peftkit[audio]'"
SHORTEST = 0.025
"""Seconds: the models that read waves see as much at once (400 samples at 16 kHz)."""


def is_there() -> bool:
    """Whether sounds can be read here."""
    return find_spec("soundfile") is not None


def samples(row: Row, processor: Any, seconds: float) -> Any:
    """The row's sound at the model's rate, fp32 of the shape (samples, 1), its first `seconds`. RowError if it is none."""
    value, wanted = row.get("audio"), extractor(processor).sampling_rate
    wave, rate = _heard(value, wanted, seconds)
    wave = resampled(wave[: math.ceil(seconds * rate)], rate, wanted)
    if len(wave) < SHORTEST * wanted:
        raise RowError(f"its sound is shorter than {SHORTEST} seconds" if len(wave) else "its sound is empty")
    return wave[: math.floor(seconds * wanted), None]


def duration(row: Row, rate: float) -> float:
    """Seconds of the row's sound, from its file's head; numbers without a rate are taken to have `rate`. RowError if it is none."""
    source = _source(row.get("audio"))
    if isinstance(source, tuple):
        return len(source[0]) / (source[1] or rate)
    with _file(source) as file:
        seconds: float = file.frames / file.samplerate
        return seconds


def longest(rows: Iterable[Row]) -> float:
    """Seconds of the longest sound; those that cannot be read are somebody else's to report."""
    found = 0.0
    for row in rows:
        try:
            found = max(found, duration(row, 16_000))
        except RowError:
            continue
    return found


def stacked(waves: Sequence[Any], processor: Any, least: float = 0) -> dict[str, Tensor]:
    """What the model reads of these sounds, padded with silence, and `attention_mask` if it takes one.

    With `least`, each sound is padded to so many seconds: for models that hear the padding (`padding`).
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    reader = extractor(processor)
    name = reader.model_input_names[0]
    heard = [torch.as_tensor(_read(reader, wave[:, 0])[name][0]).float() for wave in waves]
    lengths = torch.tensor([len(sound) for sound in heard])
    is_wave = heard[0].ndim == 1
    if is_wave:
        short = math.floor(least * reader.sampling_rate) - len(heard[0])
        heard[0] = torch.nn.functional.pad(heard[0], (0, max(0, short)))
    padded = pad_sequence(heard, batch_first=True)
    within = torch.arange(padded.shape[1]) < lengths[:, None]
    masks = reader.return_attention_mask or (is_wave and not least)
    return {name: padded, "attention_mask": within.long()} if masks else {name: padded}


def padding(config: Any, asked: float | None) -> dict[str, float]:
    """`pad_to` of a model, where it is known: 0 unless it hears the padding.

    wav2vec2-base and its kin normalise over the whole length of a sound, so silence behind it changes what they hear, and
    a mask does not help: a row's loss would hang on the length of the rows beside it.
    """
    if asked is not None or getattr(config, "feat_extract_norm", None) == "group":
        return {}
    return {"pad_to": 0.0}


def masking(share: float) -> dict[str, Any]:
    """SpecAugment as the configurations of speech models name it; and no layer is dropped, of which ZeRO would know nothing."""
    return {"apply_spec_augment": share > 0, "mask_time_prob": share, "layerdrop": 0.0}


def extractor(processor: Any) -> Any:
    """The feature extractor, by itself or in a processor that also has a tokenizer."""
    return getattr(processor, "feature_extractor", processor)


def resampled(wave: Any, rate: int, wanted: int) -> Any:
    """The same sound at another rate, without what that cannot hold."""
    from numpy import float32
    from scipy.signal import resample_poly

    if rate == wanted or not len(wave):
        return wave.astype(float32)
    shared = math.gcd(rate, wanted)
    return resample_poly(wave, wanted // shared, rate // shared).astype(float32)


def described(wave: Any, processor: Any) -> str:
    """`sound of 3.2 s`."""
    return f"sound of {len(wave) / extractor(processor).sampling_rate:.1f} s"


def _read(reader: Any, wave: Any) -> Any:
    # Alone, so that what it normalises by does not depend on the other sounds' lengths.
    return reader(wave, sampling_rate=reader.sampling_rate, return_tensors="np")


def _heard(value: Any, wanted: int, seconds: float) -> tuple[Any, int]:
    """One channel, and its rate."""
    source = _source(value)
    if isinstance(source, tuple):
        wave, rate = source[0], int(source[1] or wanted)
    else:
        with _file(source) as file:
            rate = file.samplerate
            wave = _decoded(file, math.ceil(seconds * rate) + rate)
    return _one_channel(wave), rate


def _source(value: Any) -> Any:
    """A path, bytes, or (array, rate): rate None where a list of numbers says none."""
    import numpy

    rate = None
    if isinstance(value, dict):
        rate = value.get("sampling_rate")
        value = value.get("bytes") or value.get("path") if value.get("array") is None else value["array"]
    if rate is not None and (not isinstance(rate, int) or rate < 1):
        raise RowError("its sound's `sampling_rate` is no number of samples a second")
    if value is None or (isinstance(value, (str, list)) and not value):
        raise RowError("no 'audio'")
    if isinstance(value, str | bytes):
        return value
    try:
        wave = numpy.asarray(value, dtype=numpy.float64)
    except (TypeError, ValueError):
        raise RowError("'audio' is no path and no list of samples") from None
    if not wave.ndim:
        raise RowError("'audio' is no path and no list of samples")
    return wave, rate


def _file(source: str | bytes) -> Any:
    from soundfile import LibsndfileError, SoundFile

    if isinstance(source, str) and not Path(source).is_file():
        raise RowError("its sound's file is not there")
    try:
        return SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (LibsndfileError, OSError):
        raise RowError("its file cannot be read as a sound") from None


def _decoded(file: Any, frames: int) -> Any:
    from soundfile import LibsndfileError

    try:
        return file.read(frames, dtype="float64", always_2d=True)
    except (LibsndfileError, RuntimeError):
        raise RowError("its sound is broken") from None


def _one_channel(wave: Any) -> Any:
    """The mean of the channels. RowError for what are no samples."""
    import numpy

    if wave.ndim == 2 and wave.shape[0] < wave.shape[1] <= wave.size:  # (channels, samples), as torchaudio has it
        wave = wave.T
    if wave.ndim not in (1, 2) or not numpy.isfinite(wave).all():
        raise RowError("its sound holds what are no samples (NaN, infinity, or more than two axes)")
    return wave.mean(axis=1) if wave.ndim == 2 else wave
