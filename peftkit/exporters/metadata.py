"""The YAML head of a model card, as the hub reads it: only keys that it knows, and values that it takes.

A base, a data set or a language that has no name on the hub is told in the card's text, and left out of its head: the hub
refuses a whole upload for one of them (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

PIPELINES = {
    "chat": "text-generation",
    "causal_lm": "text-generation",
    "preference": "text-generation",
    "masked_lm": "fill-mask",
    "sequence_classification": "text-classification",
    "reward": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "image_classification": "image-classification",
    "audio_classification": "audio-classification",
    "speech_recognition": "automatic-speech-recognition",
}
"""The hub's names of tasks. A seq2seq without languages may be any of several: the hub then goes by the model's class."""
LIBRARIES = {
    "adapter": "peft",
    "merged": "transformers",
    "quantized": "transformers",
    "onnx": "onnx",
    "openvino": "openvino",
    "gguf": "gguf",
    "torch": "pytorch",
}
METRICS = {
    "accuracy": "accuracy", "f1": "f1", "precision": "precision", "recall": "recall", "mcc": "matthews_correlation",
    "roc_auc": "roc_auc", "brier": "brier_score", "bleu": "bleu", "chrf": "chrf", "rouge": "rouge", "wer": "wer", "cer": "cer",
    "perplexity": "perplexity", "mae": "mae", "mse": "mse", "pearson": "pearsonr", "spearman": "spearmanr",
    "exact_match": "exact_match", "text_exact_match": "exact_match", "entity_f1": "seqeval",
}  # fmt: skip
"""Ours -> the hub's."""
LANGUAGE = re.compile(r"[a-z]{2,3}")


def head(
    name: str,
    kind: str,
    base: str,
    task: Mapping[str, Any],
    tags: Sequence[str],
    licence: str | None,
    datasets: Sequence[str],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """The head as a mapping. `metrics` are `split name` -> value, with intervals as `split name/low` and `/high`."""
    from huggingface_hub import ModelCardData

    pipeline = pipeline_of(task)
    results = evaluations(metrics, pipeline, datasets) if pipeline else []
    known = {METRICS[word] for word in (key.partition(" ")[2] for key in metrics) if word in METRICS}
    of_hub = is_hub_name(base)
    data = ModelCardData(
        base_model=base if of_hub else None,
        base_model_relation=("adapter" if kind == "adapter" else "finetune") if of_hub else None,
        library_name=LIBRARIES.get(kind),
        pipeline_tag=pipeline,
        language=languages(task) or None,
        license=licence,
        datasets=list(datasets) or None,
        metrics=sorted(known) or None,
        tags=list(tags),
        model_name=name if results else None,
        eval_results=results or None,
    )
    found: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return found


def pipeline_of(task: Mapping[str, Any]) -> str | None:
    if task["name"] == "seq2seq" and task.get("source_lang") and task.get("target_lang"):
        return "translation"
    return PIPELINES.get(task["name"])


def languages(task: Mapping[str, Any]) -> list[str]:
    """Those that the task's settings name, by their codes: nothing else is known of the rows."""
    said = (task.get(name) for name in ("source_lang", "target_lang", "language"))
    codes = [re.split(r"[_-]", value)[0].lower() for value in said if isinstance(value, str)]
    return list(dict.fromkeys(code for code in codes if LANGUAGE.fullmatch(code)))


def is_hub_name(name: str) -> bool:
    """Whether a base's name is one of the hub's: `ORG/NAME`, and no folder."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if name.startswith((".", "/", "~")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def evaluations(metrics: Mapping[str, float], pipeline: str, datasets: Sequence[str]) -> list[Any]:
    """Each finite number for the hub's table of results."""
    from huggingface_hub import EvalResult

    of_hub = len(datasets) == 1
    found = []
    for key, value in numbers(metrics).items():
        split, _, name = key.partition(" ")
        if math.isfinite(value):
            found.append(
                EvalResult(
                    task_type=pipeline,
                    dataset_type=datasets[0] if of_hub else "private",
                    dataset_name=datasets[0] if of_hub else f"{split} rows",
                    dataset_split=split,
                    metric_type=METRICS.get(name, name),
                    metric_value=value,
                    metric_name=f"{key}{interval(metrics, key)}",
                )
            )
    return found


def numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without the ends of intervals, and without parts of a metric (`f1/macro`)."""
    return {name: value for name, value in metrics.items() if "/" not in name}


def interval(metrics: Mapping[str, float], name: str) -> str:
    """` (95 % interval 0.4 to 0.6)`, if there is one."""
    ends = [metrics.get(f"{name}/{end}") for end in ("low", "high")]
    if None in ends:
        return ""
    low, high = (f"{end:.4g}" for end in ends)
    return f" (95 % interval {low} to {high})"
