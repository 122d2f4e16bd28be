"""What each task is tested with: tiny models, rows, and transformers' own loss of one row alone, the oracle of a step.

A task's case is one entry of CASES. tests/test_promises.py holds every step against it in every world, and the README's
table of what goes with what is made of the outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from peftkit.models.inspect import inner
from tests.tiny import PAD, save_image, save_sound

ROWS = 19
"""Three steps of at most eight, the last one of three rows."""
Oracle = Callable[[Any, dict[str, Any], dict[str, Any]], tuple[torch.Tensor, float]]


@dataclass(frozen=True)
class Case:
    """One task's models, rows and oracle."""

    families: tuple[str, ...]
    """Tiny models that it is run with (tests/tiny.py), the first one everywhere."""
    rows: Callable[[Path], list[dict[str, Any]]]
    """Rows of very different lengths; the folder takes what they need beside them (images)."""
    oracle: Oracle
    """(model, one window's features, the step's shared values) -> its loss SUMMED over its targets, without padding and
    without peftkit's own loss, and their number."""
    model: dict[str, Any] = field(default_factory=dict)
    """What `save_tiny` is told: the head, the number of labels."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the task."""
    tolerance: float = 1e-5
    """Relative; wider where a loss subtracts sums that are nearly the same, so that fp32's rounding is a larger part of it."""


def text(row: int) -> tuple[str, str]:
    return f"question {row} " + "and so on " * (row % 7), "word " * (1 + (row * row) % 17)


def next_token_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """transformers' own mean loss of one row times its targets."""
    labels = torch.tensor([features["labels"]])
    count = int((labels[:, 1:] != -100).sum())
    return model(input_ids=torch.tensor([features["input_ids"]]), labels=labels).loss * count, count


def one_label_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    extra = {name: torch.tensor([features[name]]) for name in ("token_type_ids",) if name in features}
    labels = torch.tensor([features["labels"]])
    return model(input_ids=torch.tensor([features["input_ids"]]), labels=labels, **extra).loss, 1


def pairs(folder: Path) -> list[dict[str, Any]]:
    return [
        {"prompt": question, "chosen": answer, "rejected": f"no {answer[5:]} {row}"}
        for row, (question, answer) in enumerate(map(text, range(ROWS)))
    ]


def answer_logp(model: Any, ids: list[int], labels: list[int]) -> torch.Tensor:
    """An answer's log-probability, from transformers' own mean loss."""
    shifted = torch.tensor([labels])
    return -model(input_ids=torch.tensor([ids]), labels=shifted).loss * int((shifted[:, 1:] != -100).sum())


def dpo_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Equation 7 of Rafailov et al., 2023, with what the features know of the reference."""
    chosen, rejected = (
        answer_logp(model, features[f"{side}_input_ids"], features[f"{side}_labels"]) - features[f"reference_{side}"]
        for side in ("chosen", "rejected")
    )
    return -torch.log(torch.sigmoid(0.1 * (chosen - rejected))), 1


def orpo_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Equations 4 to 7 of Hong et al., 2024: odds of the mean probabilities."""
    means, odds = [], []
    for side in ("chosen", "rejected"):
        ids, labels = torch.tensor([features[f"{side}_input_ids"]]), torch.tensor([features[f"{side}_labels"]])
        mean = -model(input_ids=ids, labels=labels).loss
        means.append(mean)
        odds.append(mean.exp() / (1 - mean.exp()))
    return -means[0] - 0.1 * torch.log(torch.sigmoid(torch.log(odds[0] / odds[1]))), 1


def kto_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Equation 8 of Ethayarajh et al., 2024; the baseline is the step's mean log-ratio, not below zero."""
    ratio = answer_logp(model, features["input_ids"], features["labels"]) - features["reference"]
    baseline = max(0.0, shared["ahead"])
    sign = 1 if features["wanted"] else -1
    return 1 - torch.sigmoid(0.1 * sign * (ratio - baseline)), 1


def reward_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    scores = [model(input_ids=torch.tensor([features[f"{side}_input_ids"]])).logits for side in ("chosen", "rejected")]
    return -torch.log(torch.sigmoid(scores[0] - scores[1])).sum(), 1


def target_text_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """transformers' own mean loss of one target, whose decoder input it makes itself, times its tokens."""
    labels = torch.tensor([features["labels"]])
    count = len(features["labels"])
    return model(input_ids=torch.tensor([features["input_ids"]]), labels=labels).loss * count, count


def answers(folder: Path) -> list[dict[str, Any]]:
    """Some questions have no answer."""
    rows = []
    for row in range(ROWS):
        question, context = text(row)
        found = [{"text": "word", "answer_start": 5 * (row % (1 + (row * row) % 17))}] if row % 4 else []
        rows.append({"question": question, "context": context, "answers": found})
    return rows


def span_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    extra = {name: torch.tensor([features[name]]) for name in ("token_type_ids",) if name in features}
    start, end = (torch.tensor([position]) for position in features["labels"])
    ids = torch.tensor([features["input_ids"]])
    return model(input_ids=ids, start_positions=start, end_positions=end, **extra).loss, 1


def alone(features: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One window as the model takes it."""
    names = ("input_ids", "token_type_ids")
    return {name: torch.tensor([features[name]]) for name in names if name in features}


def several_labels_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """transformers' own loss is the mean over the labels, which it wants as fractions."""
    labels = torch.tensor([features["labels"]])
    model.config.problem_type = "multi_label_classification"
    return model(**alone(features), labels=labels.float()).loss * labels.numel(), labels.numel()


def numbers_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    labels = torch.tensor([features["labels"]])
    model.config.problem_type = "regression"
    return model(**alone(features), labels=labels).loss * labels.numel(), labels.numel()


def tags_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    labels = torch.tensor([features["labels"]])
    count = int((labels != -100).sum())
    return model(**alone(features), labels=labels).loss * count, count


def choice_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Each choice by itself, which is all that the model sees of the others."""
    ends = torch.tensor(features["choice_lengths"]).cumsum(0).tolist()
    spans = zip([0, *ends[:-1]], ends, strict=True)
    logits = [model(torch.tensor([[features["input_ids"][start:end]]])).logits for start, end in spans]
    return torch.nn.functional.cross_entropy(torch.cat(logits, 1), torch.tensor([features["labels"]])), 1


def tagged(row: int) -> dict[str, Any]:
    words = " ".join(text(row)).split()
    return {"tokens": words, "tags": [("O", "B-A", "I-A", "B-B")[(row + at) % 4] for at in range(len(words))]}


def choosing(row: int) -> dict[str, Any]:
    question, answer = text(row)
    return {"question": question, "choices": ["yes", answer, "no and no"][: 2 + row % 2], "label": row % 2}


def pictures(folder: Path) -> list[dict[str, Any]]:
    return [
        {"image": save_image(folder / f"{row}.png", row, width=20 + row), "label": f"L{row % 3}"} for row in range(ROWS)
    ]


def image_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """transformers' own loss of one image, scaled to -1 .. 1; norms over the batch stand still."""
    pixels = torch.tensor(features["image"]).permute(2, 0, 1)[None].float() / 127.5 - 1
    return model(pixel_values=pixels, labels=torch.tensor([features["labels"]])).loss, 1


def clips(folder: Path) -> list[dict[str, Any]]:
    """Sounds of very different lengths, each with a label and a text."""
    return [
        {
            "audio": save_sound(folder / f"{row}.wav", row, 0.1 + 0.02 * (row * row % 13)),
            "label": f"L{row % 3}",
            "text": "a book of all " * (1 + row % 2) + "abc"[row % 3] * (row % 4),
        }
        for row in range(ROWS)
    ]


def wave_of(features: dict[str, Any]) -> torch.Tensor:
    """One sound as wav2vec2 reads it: mean 0, variance 1."""
    wave = torch.tensor(features["audio"])[:, 0]
    return ((wave - wave.mean()) / torch.sqrt(wave.var(unbiased=False) + 1e-7))[None]


def mel_of(features: dict[str, Any]) -> torch.Tensor:
    from transformers import WhisperFeatureExtractor

    ears = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    read: torch.Tensor = ears(features["audio"][:, 0], sampling_rate=16_000, return_tensors="pt")["input_features"]
    return read


def sound_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    hears = hasattr(plain(model).config, "num_mel_bins")
    inputs = {"input_features": mel_of(features)} if hears else {"input_values": wave_of(features)}
    return model(**inputs, labels=torch.tensor([features["labels"]])).loss, 1


def written_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Whisper's own mean loss of one text, whose decoder input it makes itself, times its tokens."""
    labels = torch.tensor([features["labels"]])
    return model(input_features=mel_of(features), labels=labels).loss * labels.shape[1], labels.shape[1]


def spelt_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """The CTC loss of one text along all of its sound's frames; in 64 bits, as its gradient is rounded coarsely in 32."""
    labels = torch.tensor(features["labels"])
    said = model(input_values=wave_of(features)).logits[0].double().log_softmax(-1)
    sizes = torch.tensor(len(said)), torch.tensor(len(labels))
    return torch.nn.functional.ctc_loss(said, labels, *sizes, blank=PAD, reduction="sum").float(), len(labels)


def plain(model: Any) -> Any:
    return inner(model)[1]


def masked_loss(model: Any, features: dict[str, Any], shared: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """transformers' own mean loss of a window as `vary` has masked it, times its masked tokens."""
    extra = {name: torch.tensor([features[name]]) for name in ("token_type_ids",) if name in features}
    labels = torch.tensor([features["labels"]])
    count = int((labels != -100).sum())
    return model(input_ids=torch.tensor([features["input_ids"]]), labels=labels, **extra).loss * count, count


CASES: dict[str, Case] = {
    "causal_lm": Case(
        ("llama", "gpt2", "gemma"),
        lambda folder: [{"text": question + answer} for question, answer in map(text, range(ROWS))],
        next_token_loss,
    ),
    "chat": Case(
        ("qwen", "llama"),
        lambda folder: [{"prompt": question, "response": answer} for question, answer in map(text, range(ROWS))],
        next_token_loss,
    ),
    "sequence_classification": Case(
        ("bert", "roberta", "distilbert", "albert", "electra", "llama"),
        lambda folder: [{"text": text(row)[0], "label": f"L{row % 3}"} for row in range(ROWS)],
        one_label_loss,
        model={"num_labels": 3},
    ),
    # An encoder-decoder reads its label off the end of the text, which their own tokenizers write.
    "sequence_classification encoder_decoder": Case(
        ("bart", "t5"),
        lambda folder: [{"text": text(row)[0] + "</s>", "label": f"L{row % 3}"} for row in range(ROWS)],
        one_label_loss,
        model={"head": "sequence_classification", "num_labels": 3},
        settings={"name": "sequence_classification"},
    ),
    "preference": Case(("llama", "qwen"), pairs, dpo_loss),
    "preference orpo": Case(("llama",), pairs, orpo_loss, settings={"name": "preference", "loss_type": "orpo"}),
    "preference kto": Case(
        ("llama",), pairs, kto_loss, settings={"name": "preference", "loss_type": "kto"}, tolerance=1e-4
    ),
    "reward": Case(
        ("llama", "qwen"),
        pairs,
        reward_loss,
        model={"head": "sequence_classification", "num_labels": 1},
        # Two scores that are nearly the same are subtracted, and the gradient grows tenfold a step: the order of the rows alone
        # moves the third by 4e-6.
        tolerance=1e-4,
    ),
    "seq2seq": Case(
        ("t5", "bart", "marian"),
        lambda folder: [{"source": question, "target": answer} for question, answer in map(text, range(ROWS))],
        target_text_loss,
        settings={"max_target_length": 40},
    ),
    "question_answering": Case(
        ("bert", "roberta", "distilbert"),
        answers,
        span_loss,
        model={"head": "question_answering"},
        # Adding the same to all positions changes no loss: the bias's gradient is 0, and what Adam makes of it is rounding.
        tolerance=1e-4,
    ),
    "sequence_classification multi_label": Case(
        ("bert", "llama"),
        lambda folder: [
            {"text": text(row)[0], "label": [f"L{row % 3}", f"L{row % 2}"][: row % 3]} for row in range(ROWS)
        ],
        several_labels_loss,
        model={"num_labels": 3},
        settings={"name": "sequence_classification"},
    ),
    "sequence_classification regression": Case(
        ("bert", "roberta"),
        lambda folder: [{"text": text(row)[0], "label": row / 4} for row in range(ROWS)],
        numbers_loss,
        model={"num_labels": 1},
        settings={"name": "sequence_classification"},
    ),
    "sequence_classification relation": Case(
        ("bert",),
        lambda folder: [
            {"text": f"one {text(row)[0]} two", "head": [0, 3], "tail": [4, 12], "label": f"L{row % 3}"}
            for row in range(ROWS)
        ],
        one_label_loss,
        model={"num_labels": 3},
        settings={"name": "sequence_classification"},
    ),
    "token_classification": Case(
        ("bert", "roberta", "distilbert", "electra", "llama"),
        lambda folder: [tagged(row) for row in range(ROWS)],
        tags_loss,
        # Without it a Llama that tags drops out a tenth of its last states.
        model={"head": "token_classification", "num_labels": 4, "classifier_dropout": 0.0},
        settings={"scheme": "none"},
    ),
    "multiple_choice": Case(
        ("bert", "roberta", "distilbert", "electra", "albert"),
        lambda folder: [choosing(row) for row in range(ROWS)],
        choice_loss,
        # Wide enough that the choices differ. The gradient of the head's bias is zero whatever they are, and Adam makes
        # steps of the rounding that is left of it.
        model={"head": "multiple_choice", "initializer_range": 0.05},
        tolerance=1e-4,
    ),
    "image_classification": Case(
        ("vit", "convnext", "resnet", "efficientnet"), pictures, image_loss, model={"num_labels": 3}
    ),
    "audio_classification": Case(("wav2vec2", "whisper"), clips, sound_loss, model={"head": "audio", "num_labels": 3}),
    "speech_recognition": Case(("whisper",), clips, written_loss),
    "speech_recognition ctc": Case(
        ("wav2vec2",), clips, spelt_loss, model={"vocab_size": 32}, settings={"name": "speech_recognition"}
    ),
    "masked_lm": Case(
        ("bert", "roberta", "distilbert"),
        lambda folder: [{"text": question + answer} for question, answer in map(text, range(ROWS))],
        masked_loss,
        model={"head": "masked_lm"},
        settings={"mask_token": "<|user|>"},
    ),
}
