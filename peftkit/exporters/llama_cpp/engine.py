"""llama.cpp with a model in it: tokens in, logits out, on the CPU; what a sequence has said before is not computed again."""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from peftkit.errors import ModelError

CHUNK = 256
"""Tokens that are computed at a time: what their logits take of a large vocabulary stays small."""


def library() -> Any:
    """llama-cpp-python. ModelError if it is not installed."""
    try:
        import llama_cpp
    except ImportError as problem:
        raise ModelError(
            f"a GGUF file is run by llama.cpp, which is not there ({problem}): pip install 'peftkit[llama]'"
        ) from problem
    llama_cpp.llama_log_set(_hear(llama_cpp), None)
    llama_cpp.llama_backend_init()
    return llama_cpp


HEARD: deque[str] = deque(maxlen=8)
"""The last errors that llama.cpp told: it prints them, and says to its caller only that there was one."""
ERROR = 4
"""GGML_LOG_LEVEL_ERROR."""


@cache
def _hear(llama: Any) -> Any:
    """What llama.cpp tells things to; kept, as it is called as long as there is a model."""

    def hear(level: int, text: bytes, data: Any) -> None:
        if level == ERROR:
            HEARD.append(text.decode(errors="replace").strip())

    return llama.llama_log_callback(hear)


class Engine:
    """A model file, open. With `words_only` no more of it is read than the vocabulary."""

    def __init__(self, file: Path, words_only: bool = False, exact: bool = False) -> None:
        """ModelError if llama.cpp cannot read the file. `exact` keeps what was computed before in fp32 instead of fp16."""
        self.llama = library()
        settings = self.llama.llama_model_default_params()
        settings.vocab_only, settings.n_gpu_layers = words_only, 0
        HEARD.clear()
        self.model = self.llama.llama_model_load_from_file(str(file).encode(), settings)
        if not self.model:
            raise ModelError(f"{file}: llama.cpp cannot read it ({'; '.join(HEARD) or 'no reason given'})")
        self.words = self.llama.llama_model_get_vocab(self.model)
        self.vocabulary: int = self.llama.llama_vocab_n_tokens(self.words)
        self.exact = exact
        self.context: Any = None
        self.length = 0
        self.held: list[list[int]] = []
        self.lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, what: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what llama.cpp holds."""
        if self.context:
            self.llama.llama_free(self.context)
        if self.model:
            self.llama.llama_model_free(self.model)
        self.context = self.model = None

    def tokenise(self, text: str, special: bool = False) -> list[int]:
        """The text's tokens, those of its special words too; `special` adds what begins and ends every text."""
        said = text.encode()
        found = (ctypes.c_int32 * (len(said) + 16))()
        count = self.llama.llama_tokenize(self.words, said, len(said), found, len(found), special, True)
        if count < 0:
            raise ModelError(f"llama.cpp cannot tokenise {text!r}")
        return list(found[:count])

    def logits(self, rows: list[list[int]], keep: list[int]) -> list[Tensor]:
        """For each row of tokens the logits of its last `keep` positions, (keep, vocabulary), fp32.

        Rows are computed one by one, so none depends on the others. Each goes on from the tokens that the row of the same
        number had in common with it the last time.
        """
        with self.lock:
            self._make_room(max(map(len, rows)), len(rows))
            return [self._row(number, row, keep[number]) for number, row in enumerate(rows)]

    def _make_room(self, length: int, rows: int) -> None:
        """A context in which so many rows of so many tokens fit; what was computed is lost when a larger one is made."""
        rows = min(rows, self.llama.llama_max_parallel_sequences())
        if length <= self.length and rows <= len(self.held):
            return
        rows = max(rows, len(self.held))
        self.length, self.held = max(self.length, 256, 1 << (length - 1).bit_length()), []
        if self.context:
            self.llama.llama_free(self.context)
        settings = self.llama.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = self.length * rows, rows
        settings.n_batch = settings.n_ubatch = CHUNK
        settings.n_outputs_max_per_seq = CHUNK
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        if self.exact:
            settings.type_k = settings.type_v = self.llama.GGML_TYPE_F32
            settings.flash_attn_type = self.llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = self.llama.llama_init_from_model(self.model, settings)
        if not self.context:
            raise ModelError(f"llama.cpp has no room for {rows} texts of {self.length} tokens")
        self.held = [[] for _ in range(rows)]

    def _row(self, number: int, ids: list[int], keep: int) -> Tensor:
        place = number % len(self.held)
        known = min(common(self.held[place], ids), len(ids) - keep)
        memory = self.llama.llama_get_memory(self.context)
        if not self.llama.llama_memory_seq_rm(memory, place, known, -1):  # some memories only forget everything
            known = 0
            self.llama.llama_memory_seq_rm(memory, place, -1, -1)
        self.held[place] = []
        found = torch.empty(keep, self.vocabulary)
        for start in range(known, len(ids), CHUNK):
            self._decode(place, ids[start : start + CHUNK], start, len(ids) - keep, found)
        self.held[place] = ids
        return found

    def _decode(self, place: int, ids: list[int], start: int, first: int, found: Tensor) -> None:
        """Compute the tokens `ids` at `start` of their row; logits from position `first` on go into `found`."""
        batch = self.llama.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for at, token in enumerate(ids):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, start + at, 1
                batch.seq_id[at][0], batch.logits[at] = place, start + at >= first
            if code := self.llama.llama_decode(self.context, batch):
                raise ModelError(f"llama.cpp stopped at a text of {start + len(ids)} tokens (code {code})")
            for at in range(max(0, first - start), len(ids)):
                row = self.llama.llama_get_logits_ith(self.context, at)
                values = np.ctypeslib.as_array(row, (self.vocabulary,))
                found[start + at - first] = torch.from_numpy(values)
        finally:
            self.llama.llama_batch_free(batch)


def common(first: list[int], second: list[int]) -> int:
    """How many tokens both begin with."""
    return next(
        (at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )
