# SPDX-License-Identifier: Apache-2.0
"""Presets, and the bytes of a cache before it exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from . import _core
from .device import is_cuda


@dataclass(frozen=True)
class Preset:
    """A named cache configuration; docs/quality.md says which to take."""

    name: str
    k_codec: str  #: symmetric, asymmetric, hybrid, affine or f16
    k_bits: int
    v_codec: str
    v_bits: int
    bits_per_value: float  #: scales and zero-points counted, windows not; head dimensions of whole blocks
    sink_tokens: int  #: first tokens of a sequence that stay fp16
    recent_tokens: int  #: newest tokens that stay fp16, and up to 31 more
    key_norm: str
    rotate: bool
    summary: str


def presets() -> list[Preset]:
    """All presets there are."""
    return [Preset(**fields) for fields in _core.presets()]


@dataclass(frozen=True)
class Plan:
    """Bytes of a cache, known before it exists."""

    preset: str
    context: int  #: tokens a sequence
    batch: int  #: sequences
    sequence_bytes: int  #: of one sequence with `context` tokens appended one by one, exact
    f16_sequence_bytes: int  #: of the same tokens in plain fp16
    #: The most that a cache for `batch` such sequences takes, prompt chunks included; on a device what it takes at once.
    pool_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller than fp16 a sequence is."""
        return self.f16_sequence_bytes / self.sequence_bytes if self.sequence_bytes else 1.0


def window_list(sliding_window: int | Sequence[int | None] | None, layers: int) -> list[int]:
    """One window a layer, 0 for none; empty where no layer has one."""
    if sliding_window is None:
        return []
    if isinstance(sliding_window, Integral):
        return [sliding_window] * layers
    return [window or 0 for window in sliding_window]


LayerBits = Sequence[tuple[int, int]]


def check_layer_bits(layer_bits: LayerBits | None, layers: int, paper: bool) -> list[tuple[int, int]]:
    """As the module takes them; empty where there are none."""
    if layer_bits is None:
        return []
    if paper:
        raise ValueError("layer_bits: not with the paper's codecs; leave one of the two out")
    if len(layer_bits) != layers:
        raise ValueError(
            f"layer_bits has {len(layer_bits)} entries for {layers} layers; give each a pair, bits of keys and of values"
        )
    return [(k, v) for k, v in layer_bits]


def make_config(
    layers: int,
    kv_heads: int,
    head_dim: int,
    preset: str,
    *,
    paper: bool,
    max_tokens: int,
    max_sequences: int,
    max_append: int,
    sliding_window: int | Sequence[int | None] | None,
    exact_prefill: bool,
    layer_bits: LayerBits | None,
) -> _core.CacheConfig:
    return _core.CacheConfig.from_preset(
        preset,
        paper,
        layers,
        kv_heads,
        head_dim,
        max_tokens,
        max_sequences,
        max_append,
        window_list(sliding_window, layers),
        exact_prefill,
        check_layer_bits(layer_bits, layers, paper),
    )


def plan(
    layers: int,
    kv_heads: int,
    head_dim: int,
    preset: str = "base",
    *,
    context: int,
    batch: int = 1,
    paper: bool = False,
    max_append: int = 512,
    sliding_window: int | Sequence[int | None] | None = None,
    exact_prefill: bool = False,
    layer_bits: LayerBits | None = None,
    device: str = "cpu",
) -> Plan:
    """What a cache for `batch` sequences of `context` tokens takes, in bytes. Allocates nothing.

    The other arguments are `Cache`'s; a device need not be there, and what attention works in on one comes besides.
    ValueError where they are not supported, RuntimeError for a device where this build has no CUDA.
    """
    config = make_config(
        layers,
        kv_heads,
        head_dim,
        preset,
        paper=paper,
        max_tokens=context * batch,
        max_sequences=batch,
        max_append=max_append,
        sliding_window=sliding_window,
        exact_prefill=exact_prefill,
        layer_bits=layer_bits,
    )
    return plan_of(config, preset, context, batch, is_cuda(device))


def plan_of(config: _core.CacheConfig, preset: str, context: int, batch: int, on_device: bool) -> Plan:
    """Of a cache that is made with `config`, on a device or in main memory."""
    return Plan(
        preset=preset,
        context=context,
        batch=batch,
        sequence_bytes=_core.sequence_bytes(config, context),
        f16_sequence_bytes=_core.f16_sequence_bytes(config, context),
        pool_bytes=_core.SharedDeviceCache.plan(config) if on_device else sum(config.plan().values()),
    )
