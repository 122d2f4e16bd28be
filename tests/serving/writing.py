"""Texts to be written, and what is told of them, without a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from peftkit.serving.jobs import Failed, Manner, Told, Writing, Written
from peftkit.serving.text import Text
from peftkit.serving.worker import Lane

EOS, PAD = 2, 3


@dataclass
class Asker:
    """Somebody who waits for a text of numbers."""

    told: list[Told] = field(default_factory=list)

    def writing(self, ids: Sequence[int], length: int = 12, **manner: Any) -> Writing:
        text = Text(lambda made: " ".join(map(str, made)))
        return Writing(
            self.told.append, ids=list(ids), ends=frozenset({EOS}), manner=Manner(length, **manner), text=text
        )

    @property
    def ids(self) -> list[int]:
        """The tokens, without the one that ended it."""
        (last,) = [one for one in self.told if isinstance(one, Written)]
        return [int(word) for word in last.text.split()]

    @property
    def problem(self) -> Exception:
        (last,) = self.told
        assert isinstance(last, Failed)
        return last.problem


def prompt(number: int, length: int) -> list[int]:
    return torch.randint(4, 300, (length,), generator=torch.Generator().manual_seed(number)).tolist()


def generated(model: Any, ids: Sequence[int], length: int = 12, **settings: Any) -> list[int]:
    """What `generate` writes, one text alone: the oracle."""
    words = {"do_sample": False, "eos_token_id": EOS, "pad_token_id": PAD, **settings}
    with torch.no_grad():
        whole = model.generate(torch.tensor([list(ids)]), max_new_tokens=length, **words)[0].tolist()
    made = whole[1:] if model.config.is_encoder_decoder else whole[len(ids) :]
    return made[: made.index(EOS)] if EOS in made else made


def finish(lane: Lane[Any]) -> None:
    """Step until nothing is left to do."""
    for _ in range(500):
        if not lane.step():
            return
    raise AssertionError("it does not end")
