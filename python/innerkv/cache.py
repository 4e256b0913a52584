# SPDX-License-Identifier: Apache-2.0
"""The cache: sequences of keys and values, and attention on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from . import _core
from .arrays import Array, Spans, empty_like, readable
from .device import DeviceCore, device_index
from .planning import LayerBits, make_config, plan, window_list


@dataclass(frozen=True)
class Usage:
    """What a cache holds now."""

    quantized_pages: int  #: in use; each is 32 tokens of one layer, of all its KV heads
    f16_pages: int
    bytes_in_use: int  #: of pages in use, windows and transforms counted
    bytes_reserved: int  #: allocated for pages


class Cache:
    """Keys and values of many sequences in one pool of pages, and attention on them.

    The first 32 tokens of a sequence and the newest 96 to 127 stay in fp16; the others are quantized, 32 at a
    time, as `preset` says. Nothing is quantized before a sequence has 256 tokens or so.

    Args:
        layers, kv_heads, head_dim: of the model. head_dim is 64, 80, 96, 112, 128, 192 or 256, of keys and
            values alike.
        preset: one of `presets()`; "f16" quantizes nothing.
        max_tokens: tokens that the cache has room for, over all sequences. Memory is taken as it is needed;
            `plan` tells how much it can become.
        max_sequences: sequences that may exist at once, forks counted.
        max_append: tokens that one append usually brings to a sequence at most (a chunk of a prompt). Larger
            appends work while there are free pages.
        sliding_window: a query sees its own position and so many less one before it; pages that no later
            query sees are dropped. One number for all layers, or one a layer, 0 or None for none.
        exact_prefill: keep prompts in fp16 until `settle` is called.
        paper: the codecs and the key transform of the InnerQ paper instead of the preset's own.
        layer_bits: precision by layer, instead of the preset's: (bits of keys, bits of values) for each layer, 2, 3, 4
            or 8 each, as `innerkv calibrate --bits` finds them (docs/calibration.md). Not on a device.
        device: "cpu", or "cuda" or "cuda:N" where this build has CUDA. There all memory is taken at once, and
            `docs/python.md` tells what else is different.

    Any number of threads may call one cache: calls wait for each other. The interpreter's lock is released
    meanwhile, so other caches and Python go on.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        preset: str = "base",
        *,
        max_tokens: int = 32768,
        max_sequences: int = 1,
        max_append: int = 512,
        sliding_window: int | Sequence[int | None] | None = None,
        exact_prefill: bool = False,
        paper: bool = False,
        layer_bits: LayerBits | None = None,
        device: str = "cpu",
    ) -> None:
        index = device_index(device)
        if layer_bits is not None and index is not None:
            raise ValueError(
                f'layer_bits: on {device} all layers have one format; choose one of presets(), or the device "cpu"'
            )
        self.layers = layers
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.preset = preset
        self.device = "cpu" if index is None else f"cuda:{index}"
        config = make_config(
            layers,
            kv_heads,
            head_dim,
            preset,
            paper=paper,
            max_tokens=max_tokens,
            max_sequences=max_sequences,
            max_append=max_append,
            sliding_window=sliding_window,
            exact_prefill=exact_prefill,
            layer_bits=layer_bits,
        )
        if index is None:
            self._core = _core.SharedCache(config)
        else:
            self._core = DeviceCore(config, index, window_list(sliding_window, layers), max_append)
        self._page_bytes = [config.page_bytes(layer) for layer in range(layers)]

    plan = staticmethod(plan)

    def __repr__(self) -> str:
        return (
            f"innerkv.Cache({self.layers}, {self.kv_heads}, {self.head_dim}, {self.preset!r}): "
            f"{self.nbytes} bytes on {self.device}"
        )

    def __reduce__(self) -> None:
        raise TypeError("innerkv.Cache: it cannot be copied or pickled; fork() copies a sequence")

    def create(self) -> int:
        """A new, empty sequence. OutOfPages where there are `max_sequences` already."""
        return self._core.create()

    def fork(self, sequence: int) -> int:
        """A sequence with the same contents, whose pages are shared until one of the two changes them."""
        return self._core.fork(sequence)

    def remove(self, sequence: int) -> None:
        """Forgets a sequence; pages that no fork has are free again."""
        self._core.remove(sequence)

    def append(
        self,
        layer: int,
        sequences: int | Sequence[int],
        k: Array,
        v: Array,
        q: Array | None = None,
        *,
        spans: Spans | None = None,
    ) -> None:
        """Adds tokens to one layer of one or more sequences.

        Args:
            sequences: one sequence, or several, each once.
            k, v: [sequences, tokens, kv_heads, head_dim], or [tokens, kv_heads, head_dim] for one sequence;
                float32, float16 or bfloat16, after RoPE. Only channels of a head must lie side by side; tensors of
                torch whose do not are copied.
            q: queries of these tokens, likewise with q_heads; the presets balance keys against them, and work
                somewhat worse without (docs/cache.md).
            spans: per sequence (first, last): its tokens first .. last - 1 count, the others are padding. All
                count where it is None.

        ValueError at keys and values that are not finite or beyond fp16, OutOfPages where the cache is full; it is then
        as it was. On a device `verify` tells of such values, and an append of more than `max_append` tokens is
        several, of which those before the first one refused stand.
        """
        sequences, (k, v, q) = _batch(sequences, k, v, q)
        self._core.append(layer, sequences, k, v, q, spans)

    def attend(
        self,
        layer: int,
        sequences: int | Sequence[int],
        q: Array,
        *,
        scale: float | None = None,
        soft_cap: float = 0.0,
        sliding_window: int | None = None,
        spans: Spans | None = None,
        first_positions: Sequence[int] | None = None,
        log_sum_exp: bool = False,
        exact: bool = False,
        isa: str = "",
    ) -> Array:
        """Attention of queries on what the cache has, causal inside a sequence's queries.

        Args:
            sequences: one sequence, or several; one may stand there more than once.
            q: [sequences, tokens, q_heads, head_dim], or [tokens, q_heads, head_dim] for one sequence;
                float32, float16 or bfloat16. kv_heads divides q_heads: query head h reads KV head
                h // (q_heads // kv_heads).
            scale: of the logits; None: 1 / sqrt(head_dim).
            soft_cap: logits become soft_cap * tanh(logit / soft_cap); 0: they stay.
            sliding_window: instead of the layer's; 0: none.
            spans: as in `append`; rows of padding are 0.
            first_positions: where the first query of each sequence stands; None: the queries are the newest
                tokens, as after an append of the same length.
            log_sum_exp: give it back as well.
            exact: fp32 arithmetic on dequantized codes instead of int8 queries and uint8 probabilities; slow,
                for measurements.
            isa: one of `available_isas()` instead of the best.

        Returns:
            An array of q's shape, type and library (numpy float32 for those that are neither numpy nor torch);
            with `log_sum_exp` that and float32 [sequences, tokens, q_heads], the natural logarithm of the sum
            of weights, minus infinity where a row saw no token.
        """
        sequences, (wide,) = _batch(sequences, q)
        out = empty_like(q, tuple(wide.shape))
        sums = empty_like(q, tuple(wide.shape[:3]), "float32") if log_sum_exp else None
        self._core.attend(
            layer,
            sequences,
            wide,
            out,
            sums,
            spans,
            first_positions,
            0.0 if scale is None else scale,
            soft_cap,
            sliding_window,
            exact,
            isa,
        )
        if len(q.shape) == 3:
            out = out[0]
            sums = None if sums is None else sums[0]
        return out if sums is None else (out, sums)

    def truncate(self, sequence: int | Sequence[int], length: int | Sequence[int]) -> None:
        """Keeps the first `length` tokens of every layer; of several sequences, each named once, with a length each.

        ValueError where a sliding window has dropped tokens that a shorter sequence needs, on a device also where
        it would cut into quantized pages; 0 always works. No sequence has then changed.
        """
        if isinstance(sequence, Integral):
            sequence, length = [sequence], [length]
        self._core.truncate(sequence, length)

    def settle(self, sequence: int) -> None:
        """Quantizes now what the next append would; with `exact_prefill`: the prompt is complete."""
        self._core.settle(sequence)

    def reserve(self, sequence: int, tokens: int) -> None:
        """OutOfPages unless so many more tokens fit into every layer.

        On the CPU it changes nothing. On a device it takes their pages: do so before a graph is captured, which cannot
        take any.
        """
        self._core.reserve(sequence, tokens)

    def length(self, sequence: int, layer: int = 0) -> int:
        """Tokens that a layer of a sequence has, dropped ones counted: the next position."""
        return self._core.length(sequence, layer)

    def usage(self) -> Usage:
        """Pages and bytes in use now, of all sequences."""
        return Usage(**self._core.usage())

    def verify(self) -> None:
        """Waits for the device, and tells what appends since the last call refused: ValueError for values that are not
        finite, OutOfPages where no pages were reserved. Such a sequence stays as it was, its results are NaN, and it
        takes no more tokens until this was called. On the CPU appends tell at once."""
        if self.device != "cpu":
            self._core.verify()

    def pages(self, layer: int, sequence: int) -> np.ndarray:
        """A copy of the quantized pages, uint8 [pages, kv_heads, bytes of a page]; the same on every device."""
        raw = np.frombuffer(self._core.pages(sequence, layer), np.uint8)
        return raw.reshape(-1, self.kv_heads, self._page_bytes[layer])

    @property
    def nbytes(self) -> int:
        """Bytes in use: pages, windows and transforms of all sequences. On a device all that was taken."""
        if self.device != "cpu":
            return self._core.core.bytes()
        return self._core.usage()["bytes_in_use"]


def _batch(
    sequences: int | Sequence[int], *arrays: Array | None
) -> tuple[Sequence[int], list[Array | None]]:
    """Sequences as a list and arrays with a dimension of sequences."""
    arrays = [None if array is None else readable(array) for array in arrays]
    if isinstance(sequences, Integral):
        sequences = [sequences]
        arrays = [
            array[None] if array is not None and len(array.shape) == 3 else array
            for array in arrays
        ]
    return sequences, arrays
