"""Texts of many requests, written together token by token; each comes and goes when it will (Orca: Yu et al., OSDI 2022).

A new text's prompt is computed by itself, and its keys and values join those of the texts that are being written, padded on
the left; a text that has ended leaves its place at once. Greedy tokens are those of `generate`, and so of `peftkit predict`,
whoever else writes at the same time: padding is masked, and no row looks at another.

Why not transformers' own continuous batching (`transformers serve --continuous-batching`, 5.23)? It was tried on a processor
(tests/bench/serve.py, one run: 32 requests, Llama 8 x 512, fp32). Its tokens are the same, and at once it takes as much CPU
time, but 2.7 times as long; one request at a time takes it 7 times as long; and it holds 13.9 GB of memory in advance where 0.7
are needed. It has no way to change the adapter, either.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from peftkit.models.inspect import inner
from peftkit.serving.choosing import Chooser
from peftkit.serving.jobs import Writing
from peftkit.serving.worker import Lane, where

log = logging.getLogger(__name__)
PREFILL = 4096
"""Tokens of new prompts in one step, padding included (one prompt at least): those who write wait no longer for it."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
COARSE = 0.1
"""What logits may differ by beside others, in parts of their size: in 32 bits and more, and in fewer."""


@dataclass
class Together:
    """Texts that are being written: their keys and values, one row each, all of one length with padding on the left."""

    cache: Any
    mask: Tensor
    """(rows, positions), 1 where a token is."""
    jobs: list[Writing] = field(default_factory=list)

    @property
    def positions(self) -> int:
        return int(self.mask.shape[1])

    def keep(self, rows: Sequence[int]) -> Together:
        """Only these rows, without the padding that all of them have."""
        chosen = torch.tensor(rows, device=self.mask.device, dtype=torch.long)
        mask = self.mask[chosen]
        start = int(mask.argmax(dim=1).min()) if rows else 0

        def part(states: Tensor) -> Tensor:
            return states[chosen, :, start : self.positions]

        return Together(_mapped(self.cache, part), mask[:, start:], [self.jobs[row] for row in rows])

    def join(self, other: Together) -> Together:
        """These and the others."""
        length = max(self.positions, other.positions)
        layers = [
            tuple(
                torch.cat([pad(own, (0, 0, length - own.shape[2], 0)), pad(new, (0, 0, length - new.shape[2], 0))])
                for own, new in ((mine.keys, theirs.keys), (mine.values, theirs.values))
            )
            if mine.is_initialized
            else None
            for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True)
        ]
        masks = [pad(one.mask, (length - one.positions, 0)) for one in (self, other)]
        return Together(_cache(layers), torch.cat(masks), [*self.jobs, *other.jobs])


class StepLane(Lane[Writing]):
    """At most `batch` texts at a time."""

    def __init__(
        self, model: Any, chooser: Chooser, batch: int, chosen: Callable[[], AbstractContextManager[Any]], padding: int
    ) -> None:
        super().__init__()
        self.model, self.chooser, self.batch, self.chosen, self.padding = model, chooser, batch, chosen, padding
        self.takes = _takes(model)
        self.together: Together | None = None

    @property
    def running(self) -> Sequence[Writing]:
        return tuple(self.together.jobs) if self.together else ()

    def clear(self) -> None:
        self.together = None

    @torch.no_grad()
    def step(self) -> bool:
        self._drop()
        new = self._admitted()
        if not new and self.together is None:
            return False
        with self.chosen():
            if self.together is not None:
                self._write(self.together)
            if new:
                self._begin(new)
        self._drop()
        return True

    def _drop(self) -> None:
        """Let go of those that have ended, and of those that nobody waits for."""
        if self.together is None:
            return
        rows = [row for row, job in enumerate(self.together.jobs) if not (job.finished or job.cancelled)]
        if not rows:
            self.together = None
        elif len(rows) < len(self.together.jobs):
            self.together = self.together.keep(rows)

    def _admitted(self) -> list[Writing]:
        """Those that begin now: as many as there are places, with prompts of not too many tokens together."""
        new: list[Writing] = []
        places, longest = self.batch - len(self.running), 0
        for job in self.next():
            longest = max(longest, len(job.ids))
            if len(new) == places or (new and longest * (len(new) + 1) > PREFILL):
                break
            new.append(self.waiting.popleft())
        return new

    def _begin(self, jobs: list[Writing]) -> None:
        """Compute prompts, take each one's first token, and let them join."""
        try:
            made, logits = self._computed(jobs)
        except Exception as problem:
            if len(jobs) > 1:
                for job in jobs:
                    self._begin([job])
            else:
                self._failed(jobs[0], problem)
            return
        self._take(jobs, logits)
        rows = [row for row, job in enumerate(jobs) if not job.finished]
        if rows:
            made = made if len(rows) == len(jobs) else made.keep(rows)
            self.together = made if self.together is None else self.together.join(made)

    def _computed(self, jobs: list[Writing]) -> tuple[Together, Tensor]:
        """The prompts' keys and values, and the logits behind them, (rows, words)."""
        length, device = max(len(job.ids) for job in jobs), self.model.device
        ids = torch.tensor([[self.padding] * (length - len(job.ids)) + list(job.ids) for job in jobs], device=device)
        mask = torch.tensor([[0] * (length - len(job.ids)) + [1] * len(job.ids) for job in jobs], device=device)
        made = Together(DynamicCache(), mask, jobs)
        logits = self._forward(ids, made)
        if any(type(layer) is not DynamicLayer for layer in made.cache.layers):
            raise NotImplementedError("its cache has layers that are no plain keys and values")
        return made, logits

    def _write(self, together: Together) -> None:
        """One more token of each text."""
        before = together.positions
        try:
            logits = self._next(together)
        except Exception as problem:
            _cut(together, before)
            if len(together.jobs) > 1:
                self._one_by_one(together)
            else:
                self._failed(together.jobs[0], problem)
            return
        self._take(together.jobs, logits)

    def _one_by_one(self, together: Together) -> None:
        """The step again, for each text by itself: the one that the model cannot compute harms no other."""
        done: Together | None = None
        for row in range(len(together.jobs)):
            one = together.keep([row])
            self._write(one)
            done = one if done is None else done.join(one)
        self.together = done

    def _next(self, together: Together) -> Tensor:
        last = torch.tensor([[job.made[-1]] for job in together.jobs], device=self.model.device)
        together.mask = pad(together.mask, (0, 1), value=1)
        return self._forward(last, together)

    def _forward(self, ids: Tensor, together: Together) -> Tensor:
        """The logits at the last position, (rows, words); the cache has grown."""
        words: dict[str, Any] = {"input_ids": ids, "attention_mask": together.mask, "past_key_values": together.cache}
        if "position_ids" in self.takes:
            words["position_ids"] = (together.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self.takes:
            words["logits_to_keep"] = 1
        logits: Tensor = self.model(**words, use_cache=True).logits[:, -1]
        return logits

    def _take(self, jobs: Sequence[Writing], logits: Tensor) -> None:
        for job, token in zip(jobs, self.chooser.tokens(jobs, logits), strict=True):
            if isinstance(token, Exception):
                self._failed(job, token)
            else:
                job.take(token)

    @staticmethod
    def _failed(job: Writing, problem: Exception) -> None:
        log.error("a text could not be written: %s", where(problem))
        job.fail(problem)


@torch.no_grad()
def why_not(lane: StepLane) -> str:
    """Why the model cannot write so, in a phrase; empty if it can, which is seen on the model itself.

    Texts that begin together, one that joins them and one that leaves have the logits that each has by itself, computed as a
    whole.
    """
    config: Any = inner(lane.model)[1].config
    words = min(config.get_text_config().vocab_size, 256)
    first, second, third = torch.randint(0, words, (3, 9), generator=torch.Generator().manual_seed(7)).tolist()
    try:
        with lane.chosen():
            both, logits = lane._computed([_made(first[:3]), _made(second[:6])])
            found = [logits, _step(lane, both, [first[3], second[6]])]
            more, _ = lane._computed([_made(third[:2])])
            found.append(_step(lane, both.join(more), [first[4], second[7], third[2]]))
            found.append(_step(lane, both.keep([0]), [first[4]]))
            ends = [first[:3], second[:6], first[:4], second[:7], first[:5], second[:8], third[:3], first[:5]]
            expected = torch.cat([_whole(lane.model, ids) for ids in ends]).float()
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}".partition("\n")[0]
    spread = expected - expected.mean(dim=1, keepdim=True)
    error = (torch.cat(found).float() - expected).abs().max() / spread.square().mean().sqrt()
    allowed = TOLERANCE.get(logits.dtype, COARSE)
    return "" if error <= allowed else f"a text beside others has logits {error:.2g} of their size away"


def _made(ids: list[int]) -> Writing:
    return Writing(lambda told: None, ids=ids)


def _step(lane: StepLane, together: Together, tokens: list[int]) -> Tensor:
    for job, token in zip(together.jobs, tokens, strict=True):
        job.made.append(token)
    return lane._next(together)


def _whole(model: Any, ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[:, -1]
    return logits


def _takes(model: Any) -> set[str]:
    """The keywords of the transformers model's forward, whatever is around it."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(plain.forward).parameters)


def _cut(together: Together, positions: int) -> None:
    """As it was before a step that broke off somewhere between two layers."""
    together.cache = _mapped(together.cache, lambda states: states[:, :, :positions])
    together.mask = together.mask[:, :positions]


def _mapped(cache: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return _cache(
        [(change(layer.keys), change(layer.values)) if layer.is_initialized else None for layer in cache.layers]
    )


def _cache(layers: Sequence[tuple[Tensor, ...] | None]) -> Any:
    """A cache of these keys and values; None for a layer that uses another one's."""
    made = DynamicCache()
    for states in layers:
        layer = DynamicLayer()
        if states is not None:
            layer.lazy_initialization(*states)
            layer.keys, layer.values = states
        made.layers.append(layer)
    return made
