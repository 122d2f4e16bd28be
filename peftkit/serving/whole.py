"""Texts of models that only `generate` can write: encoder-decoders, beams, other programs' caches; some at a time, each whole.

Those that begin together end together at the latest; each may still be shorter, be followed while it is written, and be
given up. What a program does not let itself be asked between two tokens (`beside`) is told at its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import StoppingCriteria, StoppingCriteriaList

from peftkit.config.sections import Generate
from peftkit.evaluation.generate import how, without_sampling
from peftkit.serving.jobs import Writing
from peftkit.serving.worker import Lane, where

log = logging.getLogger(__name__)


class WholeLane(Lane[Writing]):
    """At most `batch` texts in one call of `generate`; a text that is drawn has a call of its own, for the sake of its seed."""

    def __init__(
        self,
        model: Any,
        settings: Generate,
        batch: int,
        chosen: Callable[[], AbstractContextManager[Any]],
        padding: int,
    ) -> None:
        super().__init__()
        self.model, self.settings, self.batch, self.chosen, self.padding = model, settings, batch, chosen, padding
        self.jobs: list[Writing] = []

    @property
    def running(self) -> Sequence[Writing]:
        return tuple(self.jobs)

    def clear(self) -> None:
        self.jobs = []

    def step(self) -> bool:
        for job in self.next():
            if len(self.jobs) == self.batch or (self.jobs and not _alike(self.jobs[0], job)):
                break
            self.jobs.append(self.waiting.popleft())
        if not self.jobs:
            return False
        with self.chosen(), torch.no_grad():
            self._write(self.jobs)
        self.clear()
        return True

    def _write(self, jobs: Sequence[Writing]) -> None:
        try:
            self._generate(jobs)
        except Exception as problem:
            if len(jobs) > 1:
                for job in jobs:
                    if not job.finished:
                        self._write([job])
            elif not jobs[0].finished:
                log.error("a text could not be written: %s", where(problem))
                jobs[0].fail(problem)

    def _generate(self, jobs: Sequence[Writing]) -> None:
        for job in jobs:
            job.made.clear()  # of a call that failed; a stream has told no more than what comes again
        device = self.model.device
        ids = [torch.tensor(job.ids, device=device) for job in jobs]
        side = "right" if self.model.config.is_encoder_decoder else "left"
        padded = pad_sequence(ids, True, self.padding, side)
        mask = pad_sequence([torch.ones_like(row) for row in ids], True, 0, side)
        start = 1 if self.model.config.is_encoder_decoder else padded.shape[1]
        follows = Follow(jobs, start, beams=self.settings.num_beams > 1)
        written = self.model.generate(
            input_ids=padded,
            attention_mask=mask,
            **jobs[0].words,
            **self._words(jobs),
            eos_token_id=sorted(jobs[0].ends) or None,
            pad_token_id=self.padding,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([follows]),
        )
        for job, row in zip(jobs, written[:, start:].tolist(), strict=True):
            follows.rest(job, row)

    def _words(self, jobs: Sequence[Writing]) -> dict[str, Any]:
        words = {**how(self.settings), "max_new_tokens": max(job.manner.max_new_tokens for job in jobs)}
        manner = jobs[0].manner
        if not manner.temperature:
            return {**words, **without_sampling(self.model), "do_sample": False}
        torch.manual_seed(manner.seed)
        drawn = {"do_sample": True, "temperature": manner.temperature, "top_p": manner.top_p, "top_k": 0}
        return {**words, **drawn, "num_beams": 1, "length_penalty": None}


class Follow(StoppingCriteria):  # type: ignore[misc]
    """Looks at the rows after each token: tells their texts, and says which have ended for their askers."""

    def __init__(self, jobs: Sequence[Writing], start: int, beams: bool) -> None:
        self.jobs, self.start, self.beams = jobs, start, beams

    def __call__(self, input_ids: Tensor, scores: Any, **words: Any) -> Tensor:
        if self.beams:  # a beam's tokens may still be replaced
            over = all(job.cancelled for job in self.jobs)
            return torch.full((len(input_ids),), over, device=input_ids.device)
        for job, row in zip(self.jobs, input_ids[:, self.start :].tolist(), strict=True):
            self._take(job, row)
        return torch.tensor([job.finished or job.cancelled for job in self.jobs], device=input_ids.device)

    def rest(self, job: Writing, row: Sequence[int]) -> None:
        """The tokens that were not seen while they came, and the end."""
        self._take(job, row)
        if not job.finished and not job.cancelled:
            job.finish("length" if len(job.made) >= job.manner.max_new_tokens else "stop", job.made)

    @staticmethod
    def _take(job: Writing, row: Sequence[int]) -> None:
        for token in row[len(job.made) :]:
            if job.finished or job.cancelled:
                return
            job.take(token)


def _alike(first: Writing, other: Writing) -> bool:
    """Whether one call can write both."""
    return first.ends == other.ends and not (first.manner.temperature or other.manner.temperature)
