"""The frozen trunk is run once for a row: what enters the first layer that trains is kept, and later passes begin there.

A batch names its rows (`windows`). Before the model's pass, the rows that are not kept yet are run through the trunk alone, in
evaluation mode and without gradients, and kept. In the pass itself the embeddings and the lower layers return at once, and the
kept hidden states come out of them. Whatever else the model computes from its inputs (masks, positions) it computes as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from peftkit.errors import ModelError
from peftkit.kernels.patch import Patch, patch
from peftkit.kernels.shelf import Shelf
from peftkit.kernels.trunk import Trunk
from peftkit.kernels.unpadded import padded_again
from peftkit.tasks.base import WINDOWS

READ = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "pixel_values")
"""The inputs that a trunk reads, as far as there are any."""


@dataclass
class TrunkCache:
    """Hung on a model; `remove` takes it off and closes its files."""

    trunk: Trunk
    shelf: Shelf
    processes: int
    dtype: torch.dtype
    """The format of the model's hidden states."""
    tell: Callable[[str], None] = lambda _: None
    """Called with a sentence where something that was kept is damaged."""
    computed: int = 0
    """Rows that were run through the trunk."""
    _hooks: list[Patch] = field(default_factory=list)
    _rows: list[Tensor] | None = None
    """What the trunk makes of the current batch, (tokens, width) a row; None while the model runs as ever."""
    _mask: Tensor | None = None
    _made: Tensor | None = None
    """Those, in the form that the layers have."""
    _taken: Tensor | None = None
    """While the trunk runs alone: what came out of it."""
    _alone: bool = False
    _used: bool = False
    _entries: dict[nn.Module, bool] = field(default_factory=dict)
    """Whether an embedding's output has the shape of the hidden states, so that it may be left out; found out on its first pass."""

    def hang(self, model: nn.Module) -> TrunkCache:
        """Hooks, ZeRO-3's among them, run inside of `_call_impl`: a module that is left out there gathers no weight."""
        trunk = self.trunk
        under = ((trunk.reader, self._whole),) if trunk.whole else self._parts()
        for module, function in ((model, self._model), *under):
            self._hooks.append(patch(module, partial(_called, function), "_call_impl"))
        return self

    def _parts(self) -> Iterator[tuple[nn.Module, Any]]:
        for kind, modules in (
            (self._embedding, self.trunk.embeddings),
            (self._below, self.trunk.layers),
            (self._above, self.trunk.above),
        ):
            yield from ((module, kind) for module in modules)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.shelf.close()

    def _model(self, model: nn.Module, *args: Any, **inputs: Any) -> Any:
        """The whole model's pass."""
        windows = inputs.pop(WINDOWS, None)
        if windows is None:
            return _as_ever(model, *args, **inputs)
        with torch.no_grad():
            self._rows = self._states(windows.tolist(), inputs)
        self._mask, self._used = inputs.get("attention_mask"), False
        try:
            outputs = _as_ever(model, *args, **inputs)
        finally:
            self._rows = self._mask = self._made = None
        if not self._used:
            raise ModelError(f"--strategy.cache_trunk: {type(model).__name__} did not run {self.trunk.words}")
        return outputs

    def _states(self, windows: Sequence[int], inputs: dict[str, Any]) -> list[Tensor]:
        """The hidden states of the batch's rows: kept ones, and those that are run through the trunk now."""
        given = next(inputs[name] for name in READ if name in inputs)
        lengths = _lengths(inputs.get("attention_mask"))
        if any(window not in self.shelf for window in windows):
            self.shelf.look()
        damaged = self.shelf.damaged
        rows = [self.shelf.get(window) for window in windows]
        if self.shelf.damaged and not damaged:
            self.tell(f"activations kept in {self.shelf.folder} are damaged; such rows are computed again")
        if lengths is not None:
            fits = zip(rows, lengths, strict=False)
            rows = [row if row is not None and len(row) == length else None for row, length in fits]
        missing = [at for at, row in enumerate(rows) if row is None]
        if self._some_miss(missing):
            # Under ZeRO-3 every process takes part where weights are gathered, with any row if it misses none.
            computed = self._run(missing or [0], inputs)
            for at, states in zip(missing, computed, strict=False):
                # Rounded as it is on disk, whether there is room for it or not: every visit sees the same.
                rows[at] = states.to(self.shelf.dtype)
                self.shelf.put(windows[at], states)
        if not windows:  # a batch that only keeps the processes in step: anything of its shape
            like = torch.zeros((), dtype=self.dtype, device=given.device)
            lengths = lengths or [self.shelf.tokens] * len(given)
            return [like.expand(length, self.shelf.width) for length in lengths]
        return [row.to(given.device, self.dtype) for row in rows if row is not None]

    def _some_miss(self, missing: Sequence[int]) -> bool:
        if self.processes == 1 or not hasattr(next(self.trunk.reader.parameters()), "ds_id"):
            return bool(missing)
        count = torch.tensor(float(len(missing)))
        dist.all_reduce(count, dist.ReduceOp.MAX)
        return bool(count)

    def _run(self, which: Sequence[int], inputs: dict[str, Any]) -> list[Tensor]:
        """Run rows of a batch through the trunk alone."""
        self.computed += len(which)
        chosen = {name: inputs[name][which] for name in READ if name in inputs}
        mask = chosen.get("attention_mask")
        if mask is not None:  # as far as the longest of these rows reaches
            end = int(mask.any(0).nonzero().max()) + 1
            chosen = {name: value[:, :end] if value.shape == mask.shape else value for name, value in chosen.items()}
            mask = chosen["attention_mask"]
        with _evaluating(self.trunk.reader):
            self._alone, self._taken = True, None
            try:
                outputs = self.trunk.reader(**chosen)
            finally:
                self._alone = False
        states = outputs[0] if self.trunk.whole else self._taken
        if states is None:
            raise ModelError(
                f"--strategy.cache_trunk: {type(self.trunk.reader).__name__} did not run {self.trunk.words}"
            )
        if mask is None:
            return list(states)
        if states.shape[:2] == mask.shape:
            states = states[mask.bool()]
        return list(states.flatten(0, -2).split(mask.sum(1).tolist()))

    def _whole(self, reader: nn.Module, *args: Any, **words: Any) -> Any:
        """An encoder that is frozen from end to end."""
        if self._rows is None or self._alone:
            return _as_ever(reader, *args, **words)
        from transformers.modeling_outputs import BaseModelOutput

        self._used = True
        return BaseModelOutput(last_hidden_state=self._padded(None))

    def _embedding(self, module: nn.Module, *args: Any, **words: Any) -> Any:
        ids = next((value for value in (*args, *words.values()) if isinstance(value, Tensor)), None)
        if self._rows is None or self._alone or ids is None or not self._entries.get(module):
            found = _as_ever(module, *args, **words)
            if ids is not None and isinstance(found, Tensor):
                self._entries[module] = found.shape == (*ids.shape, self.shelf.width)
            return found
        # Of the right shape and format, and nobody reads it; written to, it would say so.
        return torch.zeros((), dtype=self.dtype, device=ids.device).expand(*ids.shape, self.shelf.width)

    def _below(self, layer: nn.Module, *args: Any, **words: Any) -> Any:
        if self._rows is None:
            found = _as_ever(layer, *args, **words)
            if self._alone and layer is self.trunk.layers[-1]:
                found = padded_again(
                    layer, args, words, found
                )  # what follows is left out, and the reader takes padded rows
                self._taken = _states_of(layer, found)
            return found
        self._used = True
        if self._made is None:
            self._made = self._padded(_first(args, words))
        return self._made

    def _above(self, layer: nn.Module, *args: Any, **words: Any) -> Any:
        return _first(args, words) if self._alone else _as_ever(layer, *args, **words)

    def _padded(self, like: Tensor | None) -> Tensor:
        """The rows' hidden states in the form that the model's layers have: padded, or one after another."""
        rows = self._rows or []
        if like is not None and like.shape[:2] == (1, sum(map(len, rows))):
            return torch.cat(rows)[None]
        mask = self._mask
        if mask is None:
            return torch.stack(rows)
        states = rows[0].new_zeros(*mask.shape, self.shelf.width)
        states[mask.bool()] = torch.cat(rows)
        return states


def _called(function: Any, module: nn.Module, *args: Any, **words: Any) -> Any:
    return function(module, *args, **words)


def _as_ever(module: nn.Module, *args: Any, **words: Any) -> Any:
    plain: Any = type(module)
    return plain._call_impl(module, *args, **words)


def _first(args: Sequence[Any], words: dict[str, Any]) -> Any:
    return args[0] if args else words["hidden_states"]


def _states_of(layer: nn.Module, found: Any) -> Tensor:
    if isinstance(found, Tensor) and found.ndim == 3:
        return found
    kind = type(layer).__name__
    raise ModelError(
        f"--strategy.cache_trunk: {kind} hands on more than hidden states of (rows, positions, width); leave it out"
    )


def _lengths(mask: Tensor | None) -> list[int] | None:
    return None if mask is None else mask.sum(1).tolist()


@contextmanager
def _evaluating(reader: nn.Module) -> Iterator[None]:
    """Meanwhile nothing drops out, also where a module asks its own mode for it."""
    training = [module for module in reader.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
