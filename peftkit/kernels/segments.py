"""Where the tokens of padded rows stand, and how the rows look when only their tokens are kept, one behind the other.

rows = Rows(attention_mask)        # (rows, length), 1 where a token is
tokens = rows.gather(hidden)       # (rows, length, width) -> (1, tokens, width)
hidden = rows.scatter(tokens)      # and back, with zeros where no token is
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Rows:
    """The rows of one forward pass."""

    def __init__(self, mask: Tensor) -> None:
        """`mask`: (rows, length), true where a token is."""
        self.shape = (mask.shape[0], mask.shape[1])
        self.index = mask.reshape(-1).nonzero().squeeze(1)
        """Of each token, its place among all (row x length + column)."""
        self.lengths: list[int] = mask.sum(1).tolist()
        """Of each row, its tokens."""
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def tokens(self) -> int:
        return len(self.index)

    @property
    def padded(self) -> bool:
        """Whether there is anything that is no token."""
        return self.tokens < self.shape[0] * self.shape[1]

    @cached_property
    def starts(self) -> list[int]:
        """Where each row's tokens start among all, and where the last one's end."""
        ends = torch.tensor(self.lengths).cumsum(0).tolist()
        return [0, *ends]

    @cached_property
    def columns(self) -> Tensor:
        """Of each token, its place in its row."""
        return self.index % self.shape[1]

    def holds(self, value: Any) -> bool:
        """Whether `value` is a tensor with something for each place of the padded rows, (rows or 1, length, ...)."""
        return (
            isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == self.shape[1] and self._has_rows(value)
        )

    def _has_rows(self, value: Tensor) -> bool:
        return value.shape[0] in (1, self.shape[0]) and value.shape[:2] != (1, self.tokens)

    def gather(self, value: Tensor) -> Tensor:
        """What belongs to the tokens, (1, tokens, ...). What all rows share, (1, length, ...), is repeated for each."""
        if value.shape[0] == 1 < self.shape[0]:
            return value.index_select(1, self.columns)
        return value.reshape(-1, *value.shape[2:]).index_select(0, self.index)[None]

    def gathered(self, value: Tensor) -> Tensor:
        """The same, once for all layers that ask: positions, tables of sines."""
        if id(value) not in self._gathered:
            self._gathered[id(value)] = value, self.gather(value)  # the tensor is kept, so that its id stays its own
        return self._gathered[id(value)][1]

    def scatter(self, value: Tensor) -> Tensor:
        """(1, tokens, ...) -> (rows, length, ...), zero where no token is."""
        rows, length = self.shape
        flat = value.new_zeros(rows * length, *value.shape[2:])
        return flat.index_copy(0, self.index, value[0]).view(rows, length, *value.shape[2:])


class Segments:
    """What stands in the place of an attention mask: which tokens of the rows may look at which.

    Layers hand it on to the attention as they do with a mask. `look` says for places (query, key) of one row whether the
    former may look at the latter.
    """

    def __init__(
        self, rows: Rows, causal: bool, window: int | None, look: Callable[..., Any], dense: Callable[[], Any]
    ):
        self.rows, self.causal, self.window = rows, causal, window
        self.keys = rows
        """The rows that are looked at: in cross-attention the encoder's."""
        self._look, self._dense = look, dense
        self._masks: dict[int, Tensor] = {}
        self._beside: Segments | None = None

    @cached_property
    def dense(self) -> Tensor | None:
        """The mask over padded rows that it stands for, (rows, 1, length, keys)."""
        mask: Tensor | None = self._dense()
        return mask

    def across(self, rows: Rows) -> Segments:
        """The same keys seen from the tokens of other rows."""
        seen = Segments(rows, self.causal, self.window, self._look, self._dense)
        seen.keys = self.rows
        return seen

    def beside(self, states: Tensor) -> Segments:
        """Of `states` (rows, length, ...) without padding, that each row's tokens look at from end to end: an encoder's."""
        if self._beside is None or self._beside.rows.shape != states.shape[:2]:
            rows = Rows(states.new_ones(states.shape[:2], dtype=torch.bool))
            self._beside = Segments(rows, False, None, self._look, lambda: None)
        return self._beside

    def mask(self, length: int) -> Tensor | None:
        """What a window leaves of a row of that length, (length, length); None where it cuts nothing off."""
        if self.window is None or length <= self.window:
            return None
        if length not in self._masks:
            places = torch.arange(length, device=self.rows.index.device)
            self._masks[length] = self._look(0, 0, places[:, None], places[None, :])
        return self._masks[length]
