"""The tokenizer that goes with a base model, with the run's own template, tokens and padding."""

from __future__ import annotations

from typing import Any

from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer

from peftkit.config.sections import Model
from peftkit.errors import ModelError
from peftkit.models.code import why_unread
from peftkit.models.find import hub_words


def load_processor(settings: Model, source: str, reads: str = "text") -> Any:
    """The tokenizer of `--model.tokenizer` or of the model; for a task that `reads` images or sound, the model's processor."""
    if reads != "text":
        return _read_media(settings, source, reads)
    processor = _read(settings, settings.tokenizer or source)
    if hasattr(processor, "add_tokens"):
        _set_template(processor, settings)
        processor.add_tokens(settings.add_tokens)
        _set_padding(processor)
    return processor


def _read_media(settings: Model, source: str, reads: str) -> Any:
    """What turns images or sound into the model's numbers (and, of a model that also writes, text into tokens)."""
    kinds = [AutoImageProcessor] if reads == "image" else [AutoProcessor, AutoFeatureExtractor]
    said = "no reason given"
    for kind in kinds:
        try:
            read = kind.from_pretrained(source, **hub_words(settings, source))
        except Exception as problem:  # transformers, Pillow and the hub each have their own
            said = why_unread(problem, source)
            continue
        if not hasattr(read, "get_vocab"):  # AutoProcessor falls back to a tokenizer
            return read
    what = {"image": "images", "audio": "sounds"}[reads]
    raise ModelError(
        f"{source} has no processor of {what} that can be read ({said.partition('. ')[0]});"
        f" name a model that is made for {what}, or another task"
    )


def vocabulary(tokenizer: Any) -> int:
    """How many rows an embedding needs for it: one more than its largest id (ids may have gaps)."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _read(settings: Model, source: str) -> Any:
    words = hub_words(settings, source)
    try:
        return AutoTokenizer.from_pretrained(source, **words)
    except Exception as problem:
        try:
            return AutoProcessor.from_pretrained(source, **words)
        except Exception:
            said = why_unread(problem, source)
            raise ModelError(
                f"{source} has no tokenizer that can be read ({said}); name another: --model.tokenizer"
            ) from problem


def _set_template(tokenizer: Any, settings: Model) -> None:
    if settings.chat_template is None:
        return
    try:
        tokenizer.chat_template = settings.chat_template.expanduser().read_text()
    except OSError as problem:
        raise ModelError(f"--model.chat_template {settings.chat_template}: {problem.strerror}") from problem


def _set_padding(tokenizer: Any) -> None:
    """Name a token that fills rows up. It is masked wherever it fills, so one that means something else does as well.

    Nothing may look for padding by this id: where it is the end token, that would hide real ends.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(
            "the tokenizer has no padding, end or unknown token to fill rows with; name another: --model.tokenizer"
        )
