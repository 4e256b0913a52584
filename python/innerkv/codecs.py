# SPDX-License-Identifier: Apache-2.0
"""The codecs on arrays: what quantization does to keys and values, for research."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _core
from .arrays import Array, from_numpy, to_float32

GROUP = 32  #: values that share a scale


@dataclass(frozen=True)
class QuantizedArray:
    """An array in codes. A value is scale * (code - bias) + zero_point of its group, bias being 2^(bits - 1) in
    symmetric groups and 0 in asymmetric ones."""

    codes: np.ndarray  #: uint8, the shape of the array
    scale: np.ndarray  #: float32, the same with `axis` divided by 32
    zero_point: np.ndarray  #: likewise
    asymmetric: np.ndarray  #: bool, likewise: which groups have a zero-point
    codec: str
    bits: int
    axis: int

    @property
    def bias(self) -> int:
        return 1 << (self.bits - 1)


def quantize(
    x: Array,
    bits: int = 3,
    codec: str = "affine",
    axis: int = -1,
    *,
    unrounded: bool = False,
    hybrid_asymmetric_bits: int = 0,
) -> QuantizedArray:
    """Quantizes groups of 32 along `axis`, exactly as the pages of a cache are.

    Keys are grouped along channels, values along tokens.

    Args:
        x: any shape whose `axis` is a multiple of 32; finite, within fp16's range.
        bits: 2, 3, 4 or 8; affine: 2, 3 or 4.
        codec: "affine" is the presets', "symmetric" the InnerQ paper's; also "hybrid" and "asymmetric".
            include/innerkv/codec.h defines them.
        unrounded: scales and zero-points stay fp32, as in the paper's accuracy code. Not for affine.
        hybrid_asymmetric_bits: of a hybrid codec's asymmetric groups; 0: `bits`. The paper's accuracy code has
            bits - 1.

    ValueError for other arguments and values.
    """
    values = to_float32(x)
    if values.ndim == 0 or values.shape[axis] % GROUP:
        raise ValueError(
            f"quantize: axis {axis} of shape {tuple(values.shape)} is not a multiple of {GROUP}, the values "
            "that share a scale; pad or cut the array"
        )
    if unrounded and codec == "affine":
        raise ValueError('quantize: "affine" scales are bytes by definition; leave unrounded out')
    moved = np.moveaxis(values, axis, -1)
    groups = np.ascontiguousarray(moved).reshape(-1, GROUP)
    codes = np.empty(groups.shape, np.uint8)
    scale = np.empty(len(groups), np.float32)
    zero_point = np.empty(len(groups), np.float32)
    asymmetric = np.empty(len(groups), bool)
    _core.quantize(
        codec, bits, hybrid_asymmetric_bits, unrounded, groups, codes, scale, zero_point, asymmetric
    )

    def per_group(array: np.ndarray) -> np.ndarray:
        shape = (*moved.shape[:-1], moved.shape[-1] // GROUP)
        return np.moveaxis(array.reshape(shape), -1, axis)

    return QuantizedArray(
        codes=np.moveaxis(codes.reshape(moved.shape), -1, axis),
        scale=per_group(scale),
        zero_point=per_group(zero_point),
        asymmetric=per_group(asymmetric),
        codec=codec,
        bits=bits,
        axis=axis,
    )


def dequantize(quantized: QuantizedArray) -> np.ndarray:
    """The array that the codes stand for, float32."""

    def spread(array: np.ndarray) -> np.ndarray:
        return np.repeat(array, GROUP, axis=quantized.axis)

    bias = np.where(quantized.asymmetric, 0, quantized.bias).astype(np.float32)
    levels = quantized.codes.astype(np.float32) - spread(bias)
    return levels * spread(quantized.scale) + spread(quantized.zero_point)


def quantize_page(k: Array, v: Array, preset: str = "base", *, paper: bool = False) -> np.ndarray:
    """The bytes of a page: 32 tokens of one KV head in a preset's codecs, without its key transform.

    Args:
        k, v: [32, head_dim].

    Returns:
        uint8, [bytes of a page]; docs/format.md draws them.
    """
    keys = np.ascontiguousarray(to_float32(k))
    values = np.ascontiguousarray(to_float32(v))
    if keys.ndim != 2:
        raise ValueError(f"quantize_page: k has shape {keys.shape}; it must be [32, head_dim]")
    page = np.empty(_core.page_bytes(preset, paper, keys.shape[1]), np.uint8)
    _core.to_page(preset, paper, keys, values, page)
    return page


def dequantize_page(
    page: Array, head_dim: int, preset: str = "base", *, paper: bool = False
) -> tuple[Array, Array]:
    """k and v of a page, float32 [32, head_dim] each; the way back from `quantize_page`."""
    k, v = (np.empty((GROUP, head_dim), np.float32) for _ in range(2))
    data = page.numpy() if hasattr(page, "numpy") else np.asarray(page)
    _core.from_page(preset, paper, np.ascontiguousarray(data, np.uint8), k, v)
    return from_numpy(k, page), from_numpy(v, page)
