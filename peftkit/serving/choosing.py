"""The next token of each text from its logits: the likeliest, or one that is drawn for this text alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from peftkit.config.sections import Generate
from peftkit.serving.jobs import Manner, Writing

KNOWN = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "max_new_tokens"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "num_beams", "length_penalty"),
    *("repetition_penalty", "no_repeat_ngram_size", "use_cache", "transformers_version", "_from_model_config"),
    *("output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate"),
}
"""Settings of a model's own generation that are read here, or that `peftkit predict` overrides."""


class Chooser:
    """Chooses as the model was set to write when it was trained, and as each request asks."""

    def __init__(self, settings: Generate) -> None:
        made: list[Any] = []
        if settings.repetition_penalty != 1:
            made.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if settings.no_repeat_ngram_size:
            made.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
        self.always = made

    def tokens(self, jobs: Sequence[Writing], logits: Tensor) -> list[int | Exception]:
        """One token for each row of `logits`, (rows, words); or why there is none."""
        likeliest: list[int] = logits.argmax(dim=-1).tolist()
        return [
            token if not (self.always or job.manner.temperature) else self._token(job, logits[row : row + 1])
            for row, (job, token) in enumerate(zip(jobs, likeliest, strict=True))
        ]

    def _token(self, job: Writing, logits: Tensor) -> int | Exception:
        ids = torch.tensor([[*job.ids, *job.made]], device=logits.device)
        try:
            scores = LogitsProcessorList([*self.always, *warpers(job.manner)])(ids, logits.float())
            if not job.manner.temperature:
                return int(scores.argmax(dim=-1))
            if job.generator is None:
                job.generator = torch.Generator(logits.device).manual_seed(job.manner.seed)
            return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=job.generator))
        except Exception as problem:  # logits that are no numbers
            return problem


def warpers(manner: Manner) -> list[Any]:
    """What changes the chances of the tokens that are drawn from."""
    made: list[Any] = []
    if manner.temperature not in (0, 1):
        made.append(TemperatureLogitsWarper(manner.temperature))
    if manner.temperature and manner.top_p < 1:
        made.append(TopPLogitsWarper(manner.top_p))
    return made


def unread(own: GenerationConfig, settings: Generate) -> list[str]:
    """Names of settings by which `generate` would choose otherwise, and that only `generate` knows: beams, forced tokens, ..."""
    plain = GenerationConfig()
    other = [
        name
        for name, value in own.to_diff_dict().items()
        if name not in KNOWN and value not in (None, False, getattr(plain, name, None))
    ]
    return [*other, *(["num_beams"] if settings.num_beams > 1 else [])]
