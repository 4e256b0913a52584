# SPDX-License-Identifier: Apache-2.0
"""A cache on a CUDA device, as `Cache` calls it.

Arrays are torch's or CuPy's, in the device's memory; calls are enqueued on the library's current stream and wait for
nothing. A sequence is a slot of the device cache: a call is for sequences that follow each other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from . import _core
from .arrays import Array, is_torch

Spans = Sequence[tuple[int, int]]


def device_index(device: Any) -> int | None:
    """The number of a CUDA device, None for the CPU. ValueError for others, and where this build has no CUDA."""
    name, _, number = str(device).partition(":")
    if name == "cpu":
        return None
    if name != "cuda" or not (number.isdecimal() or not number):
        raise ValueError(f'device {device!s}; supported are "cpu", "cuda" and "cuda:N"')
    reason = _core.cuda_unavailable_reason()
    if reason:
        raise ValueError(f'device {device!s}: {reason}. docs/python.md says how to build with CUDA; or use "cpu"')
    if number:
        return int(number)
    torch = sys.modules.get("torch")
    return torch.cuda.current_device() if torch is not None else 0


def stream_of(array: Array, index: int) -> int:
    """The stream on which the array's library works now, as a number."""
    if is_torch(array):
        return sys.modules["torch"].cuda.current_stream(index).cuda_stream if array.is_cuda else 0
    cupy = sys.modules.get("cupy")
    return cupy.cuda.get_current_stream().ptr if cupy is not None else 0


def capsule(array: Array, stream: int) -> Any:
    """What the module reads, without a wait: the array is used on the stream that made it."""
    if is_torch(array):
        strides = array.stride()
        dense = array if strides[-1] == 1 and 0 not in strides else array.contiguous()
        return sys.modules["torch"].utils.dlpack.to_dlpack(dense)
    if hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] == 2:  # CUDA
        return array.__dlpack__(stream=stream or 1)  # 1: the default stream
    return array


def align(states: Array, first: Any, dim: int = 1) -> Array:
    """Rows whose tokens begin at first[i] of dimension `dim` begin at 0; what is behind them is anything."""
    torch = sys.modules["torch"]
    tokens = states.shape[dim]
    index = (torch.arange(tokens, device=states.device) + first[:, None]).clamp(max=tokens - 1)
    return _gather(states, index, dim)


def unalign(states: Array, first: Any, counts: Any, dim: int = 1) -> Array:
    """The way back; columns that are no tokens are 0."""
    torch = sys.modules["torch"]
    column = torch.arange(states.shape[dim], device=states.device) - first[:, None]
    padding = (column < 0) | (column >= counts[:, None])
    result = _gather(states, column.clamp(min=0), dim)
    return result.masked_fill(_broadcast(padding, result, dim), 0)


def _broadcast(index: Any, states: Array, dim: int) -> Any:
    """[batch, tokens] as `states` has its dimensions."""
    shape = [1] * states.ndim
    shape[0], shape[dim] = index.shape
    return index.view(shape)


def _gather(states: Array, index: Any, dim: int) -> Array:
    return states.gather(dim, _broadcast(index, states, dim).expand(states.shape))


class DeviceCore:
    """_core.SharedDeviceCache with the methods of _core.SharedCache."""

    def __init__(self, config: _core.CacheConfig, index: int, windows: list[int], max_append: int) -> None:
        self.core = _core.SharedDeviceCache(config, index)
        self.index = index
        self.windows = windows
        self.max_append = max_append
        for name in ("create", "fork", "remove", "truncate", "length", "usage", "verify", "pages"):
            setattr(self, name, getattr(self.core, name))

    def reserve(self, sequence: int, tokens: int) -> None:
        self.core.reserve(sequence, self.core.length(sequence, 0) + tokens)

    def settle(self, sequence: int) -> None:
        raise ValueError("settle: not there on a device; the next append does it")

    def append(
        self, layer: int, sequences: Sequence[int], k: Array, v: Array, q: Array | None, spans: Spans | None
    ) -> None:
        slot = first_slot(sequences)
        counts = None
        if spans is not None:
            first, counts = self._spans(k, spans)
            if first is not None:
                k, v, q = (None if rows is None else align(rows, first) for rows in (k, v, q))
        stream = stream_of(k, self.index)
        tokens = k.shape[1]
        for begin in range(0, tokens, self.max_append) or [0]:
            end = min(begin + self.max_append, tokens)
            part = None if counts is None else (counts - begin).clamp(0, end - begin)
            self.core.append(
                layer,
                slot,
                capsule(k[:, begin:end], stream),
                capsule(v[:, begin:end], stream),
                None if q is None else capsule(q[:, begin:end], stream),
                None if part is None else capsule(part, stream),
                stream,
            )

    def attend(
        self,
        layer: int,
        sequences: Sequence[int],
        q: Array,
        out: Array,
        log_sum_exp: Array | None,
        spans: Spans | None,
        first_positions: Sequence[int] | None,
        scale: float,
        soft_cap: float,
        sliding_window: int | None,
        exact: bool,
        isa: str,
    ) -> None:
        if first_positions is not None or exact or isa:
            raise ValueError(
                "attend: first_positions, exact and isa are not there on a device, where queries are those of the "
                "last append; use a cache on the CPU"
            )
        slot = first_slot(sequences)
        window = self.windows[layer] if sliding_window is None and self.windows else sliding_window or 0
        stream = stream_of(q, self.index)
        out[:] = float("nan")  # what a refused append leaves unanswered is not taken for an answer
        first = counts = None
        rows, rows_out = q, out
        if spans is not None:
            first, counts = self._spans(q, spans)
            if first is not None:
                rows, rows_out = align(q, first), out.clone()
        sums = log_sum_exp
        limit = self.core.query_limit(q.shape[1])
        if sums is not None and limit != q.shape[1]:
            sums = sums.new_empty if is_torch(sums) else sys.modules["cupy"].empty
            sums = sums((q.shape[0], limit, q.shape[2]), dtype=log_sum_exp.dtype)
        if sums is not None:
            sums[:] = float("nan")
        self.core.attend(
            layer,
            slot,
            capsule(rows, stream),
            capsule(rows_out, stream),
            None if sums is None else capsule(sums, stream),
            scale,
            soft_cap,
            window,
            stream,
        )
        if sums is not None and sums is not log_sum_exp:
            log_sum_exp[:] = sums[:, : q.shape[1]]
        if counts is not None:
            zeros = counts.new_zeros(counts.shape)
            out[:] = unalign(rows_out, zeros if first is None else first, counts)
            if log_sum_exp is not None:
                aligned = unalign(log_sum_exp, zeros if first is None else first, counts)
                blank = unalign(log_sum_exp.new_ones(log_sum_exp.shape), zeros if first is None else first, counts)
                log_sum_exp[:] = aligned.masked_fill(blank == 0, float("-inf"))

    def _spans(self, like: Array, spans: Spans) -> tuple[Any, Any]:
        """first (None where all are 0) and counts, int32, of each row on the device."""
        if not is_torch(like):
            raise ValueError("spans: on a device they are supported for torch's tensors")
        tokens = like.shape[1]
        if len(spans) != like.shape[0] or any(not 0 <= a <= b <= tokens for a, b in spans):
            raise ValueError(f"spans {list(spans)}; give one (first, last) a sequence, 0 <= first <= last <= {tokens}")
        torch = sys.modules["torch"]
        first = None
        if any(a for a, _ in spans):
            first = torch.tensor([a for a, _ in spans], device=like.device)
        counts = torch.tensor([b - a for a, b in spans], dtype=torch.int32, device=like.device)
        return first, counts


def first_slot(sequences: Sequence[int]) -> int:
    first = sequences[0] if len(sequences) else 0
    if list(sequences) != list(range(first, first + len(sequences))):
        raise ValueError(
            f"sequences {list(sequences)}; on a device a call is for sequences that follow each other, as [2, 3, 4]"
        )
    return first
