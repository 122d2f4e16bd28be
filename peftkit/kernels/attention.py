"""Attention over rows without padding: each row's tokens look at that row's alone, whatever stands beside it.

It is registered with transformers under a name of its own, as attention and as what makes masks. Where nothing can be left
out (no padding, a cache of keys and values, a mask that is not understood) it is transformers' SDPA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from peftkit.kernels.segments import Rows, Segments

NAME = "peftkit_unpadded"
PLAIN = "sdpa"
"""What it stands for."""
SHORT = 256
"""Up to so many tokens torch's backward pass on a CPU is faster in fp32 than in 16 bits (17 against 20 us a token, 5 against 18
at 64), and nearer to the truth."""
FULL, CAUSAL, WINDOW = "bidirectional_mask_function", "causal_mask_function", "sliding_window_"


def register() -> None:
    """Make the name known to transformers."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, mask_of)


def attention_of(config: Any) -> str | None:
    """Which attention a model computes, whoever computes it: what its numbers are the same with, to rounding."""
    name: str | None = config._attn_implementation
    return PLAIN if name == NAME else name


def mask_of(**asked: Any) -> Segments | Tensor | None:
    """What transformers' `sdpa_mask` makes of the same words, or Segments where the rows are padded and understood."""
    from transformers.masking_utils import sdpa_mask

    dense: Callable[[], Tensor | None] = partial(sdpa_mask, **asked)
    padding, length = asked.get("attention_mask"), asked["kv_length"]
    begins = all(isinstance(asked.get(at, 0), int) and asked.get(at, 0) == 0 for at in ("q_offset", "kv_offset"))
    parts = list(_parts(asked["mask_function"]))
    if padding is None or padding.shape[-1] != length or not begins or not all(map(_is_understood, parts)):
        return dense()
    rows = Rows(padding)
    causal = any(part == CAUSAL for part in parts)
    if not rows.padded or (causal and asked["q_length"] != length):
        return dense()
    window = asked.get("local_size") if any(part.startswith(WINDOW) for part in parts) else None
    return Segments(rows, causal, window, asked["mask_function"], dense)


def _parts(function: Callable[..., Any]) -> Iterator[str]:
    """What a mask's function is put together from, by name."""
    kind = function.__qualname__
    if kind.startswith("and_masks."):
        for cell in function.__closure__ or ():
            for part in cell.cell_contents:
                yield from _parts(part)
    else:
        yield kind


def _is_understood(part: str) -> bool:
    return part in (FULL, CAUSAL) or part.startswith(WINDOW)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **how: Any
) -> tuple[Tensor, Any]:
    """As transformers' attention functions: (rows, heads, length, width) each, to (rows, length, heads, width)."""
    segments, mask = attention_mask, attention_mask
    if isinstance(segments, Segments):
        if _is_unpadded(query, segments.rows) and _is_unpadded(key, segments.keys):
            odd = [name for name in ("softcap", "position_bias", "s_aux") if how.get(name) is not None]
            if odd:
                raise NotImplementedError(f"attention with {', '.join(odd)}")
            return by_segment(query, key, value, segments, how.get("dropout", 0.0), how.get("scaling")), None
        mask = segments.dense
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    made: tuple[Tensor, Any] = sdpa_attention_forward(module, query, key, value, mask, **how)
    return made


def _is_unpadded(states: Tensor, rows: Rows) -> bool:
    return states.shape[0] == 1 and states.shape[2] == rows.tokens


def by_segment(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Attention inside each row: (1, heads, tokens, width) each, to (1, tokens, heads, width).

    Fewer heads of keys and values than of queries are shared by neighbours among these.
    """
    if query.device.type == "cpu" and not dropout and query.shape[-1] == value.shape[-1]:
        out: Tensor = _OnHost.apply(query, key, value, segments, scale)  # type: ignore[no-untyped-call]
        return out
    if query.is_cuda and not dropout and query.dtype in (torch.float16, torch.bfloat16):
        return _on_cuda(query, key, value, segments, scale)
    parts = [
        torch.split(states, lengths, 2) for states, lengths in zip((query, key, value), _lengths(segments), strict=True)
    ]
    shared = query.shape[1] != key.shape[1]
    made = [
        scaled_dot_product_attention(
            q, k, v, (mask := segments.mask(q.shape[2])), dropout, segments.causal and mask is None, scale=scale,
            enable_gqa=shared,
        )
        for q, k, v in zip(*parts, strict=True)
    ]  # fmt: skip
    return torch.cat(made, 2).transpose(1, 2)


def _lengths(segments: Segments) -> tuple[list[int], list[int], list[int]]:
    return segments.rows.lengths, segments.keys.lengths, segments.keys.lengths


def _on_cuda(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """torch's flash attention over rows of any lengths, in one kernel."""
    from torch.nn.attention.varlen import varlen_attn

    at, most = zip(*((_places(rows, query.device), max(rows.lengths)) for rows in _both(segments)), strict=True)
    back = (
        -1 if segments.window is None else segments.window - segments.causal
    )  # a causal window counts the token itself
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    shared = query.shape[1] != key.shape[1]
    window = (back, 0 if segments.causal else back)
    made: Any = varlen_attn(q, k, v, at[0], at[1], most[0], most[1], scale=scale, window_size=window, enable_gqa=shared)
    out: Tensor = made[None]
    return out


def _places(rows: Rows, device: torch.device) -> Tensor:
    return torch.tensor(rows.starts, device=device, dtype=torch.int32)


def _both(segments: Segments) -> tuple[Rows, Rows]:
    return segments.rows, segments.keys


class _OnHost(torch.autograd.Function):
    """torch's flash attention for CPUs, row by row, into one tensor: as many nodes of autograd as rows would copy all states
    once more, forward and back."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        _, heads, tokens, width = query.shape
        out, sums = query.new_empty(1, tokens, heads, width), []
        for q, k in _spans(segments):
            mask = _additive(segments.mask(q.stop - q.start), query.dtype)
            made, logsumexp = flash(
                query[:, :, q], key[:, :, k], value[:, :, k], 0.0, segments.causal and mask is None,
                attn_mask=mask, scale=scale,
            )  # fmt: skip
            out[:, q] = made.transpose(1, 2)
            sums.append(logsumexp)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value, out, *sums = ctx.saved_tensors
        segments = ctx.segments
        # In the layout of the projections, so that what comes before needs no copy.
        # Keys of a row without a query are passed over.
        made_as = torch.empty_like if all(segments.rows.lengths) else torch.zeros_like
        grads = [made_as(states.transpose(1, 2)).transpose(1, 2) for states in (query, key, value)]
        for (q, k), logsumexp in zip(_spans(segments), sums, strict=True):
            states = [
                grad[:, q].transpose(1, 2),
                query[:, :, q],
                key[:, :, k],
                value[:, :, k],
                out[:, q].transpose(1, 2),
            ]
            if q.stop - q.start <= SHORT:
                states = [part.float() if part.element_size() < 4 else part for part in states]
            mask = _additive(segments.mask(q.stop - q.start), states[0].dtype)
            causal = segments.causal and mask is None
            made = flash(*states, logsumexp, 0.0, causal, attn_mask=mask, scale=ctx.scale)
            for into, part, at in zip(grads, made, (q, k, k), strict=True):
                into[:, :, at] = part
        return *grads, None, None


def _spans(segments: Segments) -> Iterator[tuple[slice, slice]]:
    """Of each row, where its queries and where its keys stand; rows without a query are passed over."""
    for q, k in zip(pairwise(segments.rows.starts), pairwise(segments.keys.starts), strict=True):
        if q[0] < q[1]:
            yield slice(*q), slice(*k)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The kernel takes masks that are added."""
    return None if mask is None else torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
