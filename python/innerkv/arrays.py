# SPDX-License-Identifier: Apache-2.0
"""Arrays of callers: numpy, torch, or anything with DLPack. torch is never imported unless a tensor of it came."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray, torch.Tensor, or what has __dlpack__
Spans = Sequence[tuple[int, int]]  # one (first, last) a sequence: tokens first .. last - 1 count, others are padding


def is_torch(array: Array) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def dense(tensor: Array) -> Array:
    """A tensor of torch as the module reads rows: channels side by side, no row that stands for several."""
    strides = tensor.stride()
    return tensor if strides[-1] == 1 and 0 not in strides else tensor.contiguous()


def readable(array: Array) -> Array:
    """What the module can read. A tensor that records gradients is read without: a cache has none."""
    return dense(array.detach()) if is_torch(array) else array


def empty_like(array: Array, shape: tuple[int, ...], dtype: str | None = None) -> Array:
    """An array of the same library and in the same place, and of the same type unless `dtype` names another.

    numpy for libraries that are neither numpy, torch nor CuPy: float32 then, since numpy lacks bfloat16.
    """
    if is_torch(array):
        torch = sys.modules["torch"]
        kind = array.dtype if dtype is None else getattr(torch, dtype)
        return torch.empty(shape, dtype=kind, device=array.device)
    if type(array).__module__.partition(".")[0] == "cupy":
        return sys.modules["cupy"].empty(shape, array.dtype if dtype is None else dtype)
    own = array.dtype if isinstance(array, np.ndarray) else np.dtype(np.float32)
    return np.empty(shape, own if dtype is None else dtype)


def to_float32(array: Array) -> np.ndarray:
    """A numpy array of float32 with the same values."""
    if is_torch(array):
        return array.detach().float().numpy()
    if not isinstance(array, np.ndarray) and hasattr(array, "__dlpack__"):
        array = np.from_dlpack(array)
    return np.asarray(array, np.float32)


def from_numpy(result: np.ndarray, like: Array) -> Array:
    """`result` as an array of the library that `like` comes from."""
    return sys.modules["torch"].from_numpy(result) if is_torch(like) else result
