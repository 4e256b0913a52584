# SPDX-License-Identifier: Apache-2.0
"""The mask that "innerkv" attention gets: which tokens are padding, and nothing else.

A cache knows positions and windows, so a mask of queries times keys is never made. What is masked in another
way than causally (images that attend both ways, packed sequences) is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from ..arrays import Spans


def padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> torch.Tensor | None:
    """bool [batch, kv_length], False for padding; None where there is none. kv_length counts the new columns where
    the cache is an InnerKVCache."""
    if use_vmap or not _is_causal(mask_function):
        raise ValueError(
            'attn_implementation="innerkv": the model asks for a mask that is not causal (images, blocks, packed '
            'or bidirectional sequences); causal attention with a sliding window or without is supported. Use "sdpa"'
        )
    # Not for InnerKVCache, whose kv_length is the new columns'; q_offset may be a tensor that is not looked at there.
    if kv_length != q_length and not torch.compiler.is_compiling() and kv_offset + kv_length > q_offset + q_length:
        raise ValueError(
            'attn_implementation="innerkv": the cache has places for keys that have not come yet (StaticCache), which is '
            'not supported; use "sdpa" with it, or InnerKVCache(max_length=...)'
        )
    if attention_mask is None:
        return None
    mask = attention_mask[:, -kv_length:]
    if is_graph(mask):  # what is in it is looked at when the graph runs
        return mask
    if mask.is_cuda and q_length == 1:  # of a step there is nothing to know before
        return mask
    if mask.all():
        return None
    mask.innerkv_spans = spans_of(mask[:, -q_length:])
    return mask


def is_graph(tensor: torch.Tensor) -> bool:
    """Work is recorded, not done: torch.compile traces, or a CUDA graph is captured."""
    return torch.compiler.is_compiling() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def spans_of(mask: torch.Tensor) -> Spans | None:
    """(first, last) of each row's True elements; None if all are. ValueError where a gap is between them."""
    if mask.all():
        return None
    tokens = mask.shape[1]
    counts = mask.sum(1)
    first = mask.int().argmax(1)
    last = tokens - mask.flip(1).int().argmax(1)
    empty = counts == 0
    first[empty] = last[empty] = 0
    if not torch.equal(last - first, counts):
        row = int((last - first != counts).nonzero()[0, 0])
        raise ValueError(
            f'attn_implementation="innerkv": attention_mask has padding between the tokens of sequence {row}; '
            "padding before and behind them is supported"
        )
    return list(zip(first.tolist(), last.tolist()))


def _is_causal(mask_function: Callable) -> bool:
    """Whether transformers' mask function is causal, perhaps within a window: they are closures, known by code."""
    if mask_function is causal_mask_function:
        return True
    model = sliding_window_causal_mask_function(1)
    return _codes(mask_function) == _codes(model)


def _codes(function: Any) -> Any:
    """The code of a function and, recursively, of those it closes over."""
    if not hasattr(function, "__code__"):
        return None
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    inner = [part for cell in cells for part in (cell if isinstance(cell, tuple) else (cell,))]
    return function.__code__, [_codes(part) for part in inner if callable(part)]
