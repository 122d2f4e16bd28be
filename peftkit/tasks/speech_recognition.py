"""What is said in a sound, as text: by models that write it (Whisper), or by models that spell it along the sound (CTC)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import NonNegativeFloat, PositiveFloat

from peftkit.errors import ConfigError
from peftkit.tasks import sounds
from peftkit.tasks.base import IGNORED, Batch, Features, Record, Row, RowError, Task
from peftkit.tasks.classification import UNKNOWN
from peftkit.tasks.positions import Wanted, token_losses, token_records

if TYPE_CHECKING:
    from torch import Tensor

ENGLISH = 51_864
"""Rows of the vocabulary of a Whisper that knows English alone."""


class SpeechRecognition(Task, name="speech_recognition"):
    """Learn to write down (`text`) what is said in a sound (`audio`, a file's path): Whisper, or a CTC model (wav2vec2, HuBERT).

    Whisper learns the text's tokens and its end; the tokens that name language and task stand before it and are not learnt.
    A CTC model (Graves et al., 2006) learns the text's characters: its loss is the negative log-likelihood of the whole
    texts, summed, and counted by their characters (transformers' `sum` divided by the step's characters, where its `mean`
    would weigh each row alike and the step's loss would hang on what stands in a micro-batch).
    """

    metrics: ClassVar[tuple[str, ...]] = ("loss", "wer", "cer")
    late: ClassVar[tuple[str, ...]] = ("time_mask",)
    reads: ClassVar[Literal["text", "image", "audio"]] = "audio"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "audio": ("audio", "file", "path", "wav", "speech"),
        "text": ("text", "sentence", "transcript", "transcription"),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("audio", "text"),)
    given: ClassVar[tuple[str, ...]] = ("text",)
    lengths: ClassVar[tuple[str, ...]] = ("max_length",)
    generates: ClassVar[bool] = True

    seconds: PositiveFloat = 30
    """Rows with a longer sound are left out: their text would not fit what is left of them."""
    language: str | None = None
    """Language of the text, for a Whisper of many languages: `german` or `de`."""
    translate: bool = False
    """The texts are English translations of what is said (Whisper's other task)."""
    time_mask: NonNegativeFloat = 0
    """Share of the sound that is hidden from the model while it trains (SpecAugment, Park et al., 2019); 0.05 is usual."""
    pad_to: NonNegativeFloat | None = None
    """Seconds that each sound is padded to; 0 pads to the longest beside it. Left out: 0, or the longest training sound
    where the model hears the padding (wav2vec2-base)."""
    writes: Literal["seq2seq", "ctc"] | None = None
    """Whether the model writes with a decoder or spells along the sound; left out: what the model is made for."""
    start: int | None = None
    """Token that the decoder starts with, if its tokenizer does not say; left out: the model's own."""
    silence: int | None = None
    """Token that stands for no character in a CTC model; left out: the model's own."""
    frames: tuple[int, int] | None = None
    """Samples that a frame of a CTC model sees, and from one frame to the next; left out: the model's own."""

    def bind(self, config: Any) -> Self:
        """With what the model's configuration says: how it writes, and how long its frames are."""
        writes = self.writes or ("ctc" if spells(config) else "seq2seq")
        found: dict[str, Any] = {"writes": writes, **sounds.padding(config, self.pad_to)}
        if writes == "ctc":
            found |= {"silence": config.pad_token_id if self.silence is None else self.silence}
            found |= {"frames": self.frames or frames_of(config)}
        else:
            self._check_language(config)
            found |= {"start": getattr(config, "decoder_start_token_id", None) if self.start is None else self.start}
        return self.model_copy(update=found)

    def fit(self, rows: Sequence[Row]) -> Self:
        if self.pad_to is not None:
            return self
        return self.model_copy(update={"pad_to": min(self.seconds, sounds.longest(rows))})

    @property
    def keeps(self) -> tuple[str, ...]:
        return () if self.writes == "ctc" else ("correct",)

    @property
    def varies(self) -> str:
        return "hides other parts of a sound each time"

    def model_class(self) -> Any:
        from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq

        return AutoModelForCTC if self.writes == "ctc" else AutoModelForSpeechSeq2Seq

    def model_options(self) -> dict[str, Any]:
        return sounds.masking(self.time_mask)

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        text = said_in(row)
        rate = sounds.extractor(processor).sampling_rate
        if sounds.duration(row, rate) > self.seconds:
            raise RowError(f"its sound is longer than --task.seconds {self.seconds:g}")
        wave = sounds.samples(row, processor, self.seconds)
        if self.writes == "ctc":
            return {"audio": wave, "labels": [] if text is None else self._spelt(text, processor, len(wave))}
        prefix, ids = self.prefix(processor), [IGNORED] if text is None else self._written(text, processor)
        if len(prefix) + len(ids) > max_length:
            raise RowError(f"its text is longer than the {max_length} tokens that the model writes at once")
        labels = [IGNORED] * (len(prefix) - 1) + ids
        return {"audio": wave, "decoder_input_ids": prefix + ids[:-1], "labels": labels}

    def prefix(self, processor: Any) -> list[int]:
        """The tokens that stand before the text: Whisper's name language and task."""
        tokenizer = tokenizer_of(processor)
        if not hasattr(tokenizer, "set_prefix_tokens"):
            return [self._known(self.start, "start")]
        task = "translate" if self.translate else "transcribe"
        named = {"language": self.language, "task": task} if self.language else {}
        tokenizer.set_prefix_tokens(**named, predict_timestamps=False)
        return list(tokenizer.prefix_tokens)

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        import torch

        waves = [row["audio"] for row in features]
        batch = sounds.stacked(waves, processor, self.pad_to or 0)
        batch["labels"] = _padded([row["labels"] for row in features], IGNORED)
        if self.writes == "ctc":
            return {**batch, "frames": torch.tensor([self._frames(len(wave)) for wave in waves])}
        return {**batch, "decoder_input_ids": _padded([row["decoder_input_ids"] for row in features], 0)}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {name: value for name, value in batch.items() if name not in ("labels", "frames")}

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def wanted(self, batch: Batch) -> Wanted | None:
        return None if self.writes == "ctc" else Wanted(batch["labels"])

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        if self.writes == "ctc":
            return self._ctc_losses(outputs.logits, batch).sum()
        return token_losses(outputs, batch["labels"]).sum()

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        if self.writes != "ctc":
            return token_records(outputs, batch["labels"])
        logits, labels = outputs.logits.detach(), batch["labels"]
        losses = self._ctc_losses(logits, batch).tolist()
        counts = (labels != IGNORED).sum(1).tolist()
        heard = [self._heard(row[:frames]) for row, frames in zip(logits, batch["frames"].tolist(), strict=True)]
        return [
            {"loss": loss, "targets": count, "heard": ids}
            for loss, count, ids in zip(losses, counts, heard, strict=True)
        ]

    def prompts(self, batch: Batch, processor: Any) -> dict[str, Any] | None:
        if self.writes == "ctc":
            return None
        heard = {name: value for name, value in self.inputs(batch).items() if name != "decoder_input_ids"}
        start = batch["labels"].new_tensor([self.prefix(processor)] * len(batch["labels"]))
        # Whisper's own generate cuts off what it began with, unless it is asked for one pass alone, as all others do.
        alone = {"force_unique_generate_call": True} if _is_whisper(processor) else {}
        return {**heard, "decoder_input_ids": start, **alone}

    def judge(self, row: Row, records: Sequence[Record], processor: Any) -> Record:
        record, tokenizer = dict(records[0]), tokenizer_of(processor)
        if "heard" in record:
            record["generated"] = _spelt_out(record.pop("heard"), tokenizer)
        elif "generated_ids" in record:
            ids = record["generated_ids"][len(self.prefix(processor)) - 1 :]
            record["generated"] = tokenizer.decode(ids, skip_special_tokens=True).strip()
        return {**record, "reference": said_in(row)}

    def unlabelled(self, row: Row) -> Row:
        return {**row, "text": UNKNOWN}

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        tokenizer = tokenizer_of(processor)
        learnt = [token for token in features["labels"] if token != IGNORED]
        text = _spelt_out(learnt, tokenizer) if self.writes == "ctc" else tokenizer.decode(learnt)
        return [(sounds.described(features["audio"], processor), False), (" -> ", False), (text, True)]

    def conflicts(self, run: Any) -> Iterator[str]:
        yield from super().conflicts(run)
        if not sounds.is_there():
            yield f"--task {self.name} {sounds.EXTRA}"

    def _check_language(self, config: Any) -> None:
        if config.model_type == "whisper" and config.vocab_size > ENGLISH and self.language is None:
            raise ConfigError(
                "this Whisper knows many languages: name that of the texts with --task.language, as in german"
            )

    def _written(self, text: str, processor: Any) -> list[int]:
        """The text's tokens and its end, as Whisper was taught: with a space before the first word."""
        tokenizer = tokenizer_of(processor)
        words = f" {text.strip()}" if _is_whisper(processor) else text.strip()
        ids: list[int] = tokenizer(words, add_special_tokens=False)["input_ids"]
        return [*ids, tokenizer.eos_token_id]

    def _spelt(self, text: str, processor: Any, length: int) -> list[int]:
        """The text's characters. RowError if the vocabulary lacks most of them, or the sound is too short to hold them."""
        tokenizer = tokenizer_of(processor)
        ids: list[int] = tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
        if 2 * ids.count(tokenizer.unk_token_id) > len(ids):
            raise RowError(
                "most of its text's characters are not in the model's vocabulary (capital letters, or small ones?)"
            )
        twice = sum(one == other for one, other in pairwise(ids))
        if len(ids) + twice > self._frames(length):  # a character that is repeated needs a frame of silence between
            raise RowError(f"its sound has fewer frames than its text has characters ({len(ids)})")
        return ids

    def _frames(self, length: int) -> int:
        """How many frames a sound of so many samples has."""
        frames: tuple[int, int] = self._known(self.frames, "frames")
        return max(0, (length - frames[0]) // frames[1] + 1)

    def _ctc_losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """(rows,): the negative log-likelihood of each text; 0 for a row without one."""
        import torch

        labels, frames = batch["labels"], batch["frames"]
        counts = (labels != IGNORED).sum(1)
        there = counts > 0
        if not there.any():
            return logits.float().sum(dim=(1, 2)) * 0
        # torch's CTC loses two digits of the gradient in fp32, differently for each padding; in 64 bits they agree to 1e-7.
        said = logits.double().log_softmax(-1)[there].transpose(0, 1)
        characters = labels[there][labels[there] != IGNORED]
        with torch.backends.cudnn.flags(enabled=False):  # its own loss takes 32-bit labels and few lengths
            losses = torch.nn.functional.ctc_loss(
                said, characters, frames[there], counts[there], self._known(self.silence, "silence"), reduction="none"
            )
        return losses.new_zeros(len(labels)).masked_scatter(there, losses).float()

    def _heard(self, logits: Tensor) -> list[int]:
        """The likeliest character of each frame; one that lasts counts once, and silence not at all."""
        return [token for token, _ in groupby(logits.argmax(-1).tolist()) if token != self.silence]

    def _known(self, value: Any, name: str) -> Any:
        if value is None:
            raise ConfigError(
                f"--task {self.name} has not met its model: call task.bind(config), or give --task.{name}"
            )
        return value


def said_in(row: Row) -> str | None:
    """The row's text; None if it is to be written. RowError if it is missing."""
    text = row.get("text")
    if text is UNKNOWN:
        return None
    if not isinstance(text, str) or not text.strip():
        raise RowError(f"'text' is no text but {type(text).__name__}" if text else "no 'text'")
    return text


def spells(config: Any) -> bool:
    """Whether transformers has a CTC model of this kind, and none that writes."""
    from transformers import MODEL_FOR_CTC_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING

    return type(config) in MODEL_FOR_CTC_MAPPING and type(config) not in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING


def frames_of(config: Any) -> tuple[int, int]:
    """(samples that a frame sees, samples from one frame to the next), through all convolutions without padding."""
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if kernels is None or strides is None or getattr(config, "add_adapter", False) or hasattr(config, "squeeze_factor"):
        raise ConfigError(
            f"--task speech_recognition: the frames of a {config.model_type} are not known here; CTC models that read"
            " waves are (wav2vec2, HuBERT, WavLM, UniSpeech, Data2Vec), or give --task.frames '[SAMPLES, STEP]'"
        )
    sees, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        sees, step = sees + (kernel - 1) * step, step * stride
    return sees, step


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer in a processor. ConfigError where there is only a feature extractor."""
    if not hasattr(processor, "tokenizer"):
        raise ConfigError(
            "--task speech_recognition: the model's folder has a feature extractor and no tokenizer, so nothing says what it"
            " writes; name a model that was taught to write (wav2vec2-base-960h, whisper-tiny)"
        )
    return processor.tokenizer


def _is_whisper(processor: Any) -> bool:
    return type(sounds.extractor(processor)).__name__ == "WhisperFeatureExtractor"


def _spelt_out(ids: list[int], tokenizer: Any) -> str:
    """Characters as text: each counts, where the tokenizer would take equal neighbours for one."""
    words = {"group_tokens": False} if hasattr(tokenizer, "word_delimiter_token") else {}
    text: str = tokenizer.decode(ids, skip_special_tokens=True, **words)
    return text.strip()


def _padded(rows: Sequence[Any], fill: int) -> Tensor:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence([torch.as_tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=fill)
