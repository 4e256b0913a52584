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
from .arrays import Array, Spans, dense, empty_like, is_torch


def is_cuda(device: Any) -> bool:
    """Whether a device is a CUDA device, there or not; the CPU is none. ValueError for others."""
    name, _, number = str(device).partition(":")
    if name not in ("cpu", "cuda") or not (number.isdecimal() or not number):
        raise ValueError(f'device {device!s}; supported are "cpu", "cuda" and "cuda:N"')
    return name == "cuda"


def device_index(device: Any) -> int | None:
    """The number of a CUDA device, None for the CPU. ValueError for others, and where this build has no CUDA."""
    if not is_cuda(device):
        return None
    reason = _core.cuda_unavailable_reason()
    if reason:
        raise ValueError(f'device {device!s}: {reason}. docs/python.md says how to build with CUDA; or use "cpu"')
    number = str(device).partition(":")[2]
    if number:
        return int(number)
    torch = sys.modules.get("torch")
    # torch may be there without CUDA of its own.
    return torch.cuda.current_device() if torch is not None and torch.cuda.is_available() else 0


def stream_of(array: Array, index: int) -> int:
    """The stream on which the array's library works now, as a number."""
    if is_torch(array):
        return sys.modules["torch"].cuda.current_stream(index).cuda_stream if array.is_cuda else 0
    cupy = sys.modules.get("cupy")
    return cupy.cuda.get_current_stream().ptr if cupy is not None else 0


def capsule(array: Array, stream: int) -> Any:
    """What the module reads, without a wait: the array is used on the stream that made it."""
    if is_torch(array):
        return sys.modules["torch"].utils.dlpack.to_dlpack(dense(array))
    if hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] == 2:  # CUDA
        return array.__dlpack__(stream=stream or 1)  # 1: the default stream
    return array


def align(states: Array, first: Any, dim: int = 1) -> Array:
    """Rows whose tokens begin at first[i] of dimension `dim` begin at 0; what is behind them is anything."""
    torch = sys.modules["torch"]
    tokens = states.shape[dim]
    index = (torch.arange(tokens, device=states.device) + first[:, None]).clamp(max=tokens - 1)
    return _gather(states, index, dim)


def unalign(states: Array, first: Any, counts: Any, dim: int = 1, padding: float = 0.0) -> Array:
    """The way back; columns that are no tokens get `padding`."""
    torch = sys.modules["torch"]
    column = torch.arange(states.shape[dim], device=states.device) - first[:, None]
    blank = (column < 0) | (column >= counts[:, None])
    result = _gather(states, column.clamp(min=0), dim)
    return result.masked_fill(_broadcast(blank, result, dim), padding)


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
        slot = first_slot(sequences, k)
        counts = None
        if spans is not None:
            first, counts = _spans(k, spans)
            if first is not None:
                k, v, q = (None if rows is None else align(rows, first) for rows in (k, v, q))
        stream = stream_of(k, self.index)
        tokens = k.shape[1]
        self.core.take(layer, slot, len(sequences), tokens, stream)  # of all parts or of none
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
        slot = first_slot(sequences, q)
        options = scale, soft_cap, self._window(layer, sliding_window)
        if spans is None:
            self._attend(layer, slot, q, out, log_sum_exp, *options)
            return
        first, counts = _spans(q, spans)
        rows = q if first is None else align(q, first)
        rows_out = empty_like(out, tuple(out.shape))
        rows_sums = None if log_sum_exp is None else empty_like(log_sum_exp, tuple(log_sum_exp.shape))
        self._attend(layer, slot, rows, rows_out, rows_sums, *options)
        first = counts.new_zeros(counts.shape) if first is None else first
        out[:] = unalign(rows_out, first, counts)
        if log_sum_exp is not None:
            log_sum_exp[:] = unalign(rows_sums, first, counts, padding=float("-inf"))

    def _window(self, layer: int, sliding_window: int | None) -> int:
        """Of a call: its own, or the layer's. A layer that is not there is the module's to refuse."""
        if sliding_window is not None:
            return sliding_window
        return self.windows[layer] if 0 <= layer < len(self.windows) else 0

    def _attend(
        self, layer: int, slot: int, q: Array, out: Array, log_sum_exp: Array | None, *options: Any
    ) -> None:
        """Rows whose tokens begin in column 0. What a refused append leaves unanswered is NaN, no answer."""
        stream = stream_of(q, self.index)
        tokens = q.shape[1]
        out[:] = float("nan")
        sums = None
        if log_sum_exp is not None:
            sums = empty_like(log_sum_exp, (q.shape[0], self.core.query_limit(tokens), q.shape[2]))
            sums[:] = float("nan")
        arrays = [None if array is None else capsule(array, stream) for array in (q, out, sums)]
        self.core.attend(layer, slot, *arrays, *options, stream)
        if log_sum_exp is not None:
            log_sum_exp[:] = sums[:, :tokens]


def _spans(like: Array, spans: Spans) -> tuple[Any, Any]:
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


def first_slot(sequences: Sequence[int], rows: Array) -> int:
    """The first of sequences that follow each other, one a row of an array."""
    first = sequences[0] if len(sequences) else 0
    if list(sequences) != list(range(first, first + len(sequences))):
        raise ValueError(
            f"sequences {list(sequences)}; on a device a call is for sequences that follow each other, as [2, 3, 4]"
        )
    if rows.shape[0] != len(sequences):
        raise ValueError(f"an array of {rows.shape[0]} sequences for sequences {list(sequences)}; give a row each")
    return first
