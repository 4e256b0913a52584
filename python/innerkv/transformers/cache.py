# SPDX-License-Identifier: Apache-2.0
"""InnerKVCache: transformers' Cache, held by innerkv."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch.utils.dlpack import to_dlpack
from transformers import Cache

from .. import cache as innerkv_cache
from ..arrays import Spans, dense
from ..planning import LayerBits, Plan, make_config, plan_of
from .columns import Columns, chunks, cut, page_chunks
from .device import CHUNK as DEVICE_CHUNK
from .device import DeviceBatch
from .layer import InnerKVLayer, check_attention
from .models import ModelShape, check_device, has_own_memory, model_shape
from .ops import new_state, register

CHUNK = 512  #: tokens of a prompt that are appended at once
#: Positions behind a sliding window that are kept, so that so many new tokens can be cropped again.
KEPT_FOR_CROP = 64
KEPT_FOR_DRAFTS = 512
LEAST_SEQUENCES = 64


class InnerKVCache(Cache):
    """A quantized cache for `model.generate(..., cache=InnerKVCache(model.config))`.

    The model must run with attn_implementation="innerkv".

    Args:
        config: the model's. ValueError where it has something that innerkv does not: latent attention (MLA),
            cross-attention, recurrent layers, other head dimensions.
        preset: one of `innerkv.presets()`.
        max_length: tokens that a sequence may reach, at least; by default what the model knows positions for. On the CPU
            memory is taken as it is needed, and there is room for 64 sequences or four a row of the first batch (beams,
            forks), which share it: OutOfPages comes when that is full.
        prefill: "exact": the tokens of a first forward call attend to each other unquantized. "decode": every
            token attends to what it would have found if all had come one by one; for measurements.
        paper: the InnerQ paper's codecs and key transform.
        layer_bits: (bits of keys, bits of values) for each layer instead of the preset's, as `innerkv.Cache` takes them.
            Not on a device.
        device: "cpu", "cuda" or "cuda:N"; by default where the first keys are. On a device all memory, for the first
            batch and `max_length`, is taken with the first keys; `verify` tells what steps refused.

    Batches with padding on the left (or right), beam search, sampling, assisted generation and sliding windows
    work; so does tensor parallelism, where each process holds the heads that it computes. Between two calls of
    the model, `attention_mask` may grow but not change.
    """

    def __init__(
        self,
        config: Any,
        preset: str = "base",
        *,
        max_length: int | None = None,
        prefill: str = "exact",
        paper: bool = False,
        layer_bits: LayerBits | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if prefill not in ("exact", "decode"):
            raise ValueError(f'InnerKVCache: prefill "{prefill}"; "exact" and "decode" are supported')
        if max_length is not None and max_length < 1:
            raise ValueError(f"InnerKVCache: max_length {max_length}; 1 and more are supported, None is the model's")
        self.shape: ModelShape = model_shape(config)
        self.preset = preset
        self.paper = paper
        self.layer_bits = layer_bits
        self.prefill = prefill
        self.max_length = max_length or self.shape.max_length
        self.config = config.get_text_config(decoder=True)
        self._record_past = False
        self._store: innerkv_cache.Cache | None = None
        self._sequences: list[int] = []
        self._waiting: InnerKVLayer | None = None
        self._on_device: DeviceBatch | None = None
        self._spoilt = False  # by a call that failed
        self.device: torch.device | None = None
        self.plan()  # refuses what the library does not support before any model runs
        self.number = register(self)
        self.state = new_state(self.number)
        super().__init__(
            layers=[
                InnerKVLayer(self, index, window)
                for index, window in enumerate(self.shape.sliding_window)
            ]
        )
        if device is not None:
            self._place(check_device(device))

    def _place(self, device: torch.device) -> None:
        if has_own_memory(device):
            if self.prefill == "decode":
                raise ValueError('InnerKVCache: prefill "decode" is not there on a device; put the model on the CPU')
            self.state = new_state(self.number, device=device)
            columns = Columns()
            for layer in self.layers:
                layer.state, layer.columns, layer.on_device = self.state, columns, True
        self.device = device

    def plan(self, context: int | None = None, batch: int = 1) -> Plan:
        """Bytes of a cache for `batch` sequences of `context` tokens (`max_length` by default); in pool_bytes there is
        room for beams. On a device, where `device` or the first keys have put the cache, pool_bytes is what it takes, for
        a batch that counts beams; what attention works in comes besides."""
        context = context or self.max_length
        kv_heads = self._store.kv_heads if self._store else self.shape.kv_heads
        config = make_config(*self._model(kv_heads), **self._options(batch, context), exact_prefill=False)
        return plan_of(config, self.preset, context, batch, self._has_own_memory())

    def _model(self, kv_heads: int) -> tuple[int, int, int, str]:
        """Of a cache for so many heads: those of this process, where others have more."""
        return self.shape.layers, kv_heads, self.shape.head_dim, self.preset

    def _options(self, batch: int, length: int) -> dict[str, Any]:
        """Of a cache for `batch` sequences of `length` tokens, that is planned or opened."""
        kept = KEPT_FOR_DRAFTS if self._record_past else KEPT_FOR_CROP
        windows = [window and window + kept for window in self.shape.sliding_window]
        options = {"sliding_window": windows, "paper": self.paper, "layer_bits": self.layer_bits}
        if self._has_own_memory():
            return options | {"max_tokens": batch * length, "max_sequences": batch, "max_append": DEVICE_CHUNK}
        # Beams are forked before the old ones are removed, and forks share what they have in common.
        sequences = max(LEAST_SEQUENCES, 4 * batch)
        return options | {"max_tokens": 2 * batch * length, "max_sequences": sequences, "max_append": CHUNK}

    def _has_own_memory(self) -> bool:
        return self.device is not None and has_own_memory(self.device)

    @property
    def nbytes(self) -> int:
        """Bytes in use, of all sequences, windows and transforms counted; on a device all that was taken."""
        return self._store.nbytes if self._store else 0

    @property
    def store(self) -> innerkv_cache.Cache:
        """The innerkv.Cache that holds the tokens, from the first forward call on."""
        if self._store is None:
            raise ValueError("InnerKVCache: nothing is stored yet; run the model first")
        return self._store

    @property
    def batch_size(self) -> int:
        return len(self._sequences) or -1

    def activate_past_recording(self) -> None:
        """Sliding windows keep more tokens from the first forward call on, so that drafts can be cropped."""
        self._record_past = True

    def open(self, keys: torch.Tensor) -> None:
        """Makes the store for the batch and the heads of the first keys, [batch, kv_heads, tokens, head_dim]."""
        batch, kv_heads, _, head_dim = keys.shape
        if self.device is None:
            self._place(check_device(keys.device))
        if head_dim != self.shape.head_dim:
            raise ValueError(
                f"InnerKVCache: keys have {head_dim} channels, the config says {self.shape.head_dim}"
            )
        model, options = self._model(kv_heads), self._options(batch, self.max_length)
        if has_own_memory(self.device):
            self._on_device = DeviceBatch(self.max_length, *model, device=self.device, **options)
            self._store, self._sequences = self._on_device.store, self._on_device.slots
            return
        self._store = innerkv_cache.Cache(*model, **options)
        self._sequences = [self._store.create() for _ in range(batch)]

    def expect(self, layer: InnerKVLayer, keys: torch.Tensor) -> None:
        """Keys of a layer have come and wait for its attention. Refuses what would go wrong unnoticed."""
        if self._waiting is not None:
            index = self._waiting.index
            self.forget_keys()  # so that the next call is a new one
            check_attention(self.config)
            raise ValueError(
                f"InnerKVCache: keys came to layer {index}, and no attention for them: a call failed in between, or the "
                'model does not attend as its attn_implementation "innerkv" says. Layers before that one may have the '
                "call's tokens: crop() the cache to where it was, or reset() it, before the next call"
            )
        if layer.index == 0 or self._store is None:
            check_attention(self.config)
        if layer.index == 0 and layer.columns.total != self.layers[-1].columns.total:
            raise ValueError(
                f"InnerKVCache: a call that failed has left {layer.columns.total} columns in the first layer and "
                f"{self.layers[-1].columns.total} in the last; crop() the cache to where it was, or reset() it"
            )
        self.check()
        if self._store is None:
            self.open(keys)
        if keys.device != self.device:
            raise ValueError(f"InnerKVCache: keys on {keys.device}; this cache is on {self.device}")
        if keys.shape[0] != len(self._sequences):
            raise ValueError(
                f"InnerKVCache: a batch of {keys.shape[0]} on a cache of {len(self._sequences)} sequences; make a "
                "new cache, or call reset()"
            )
        self._waiting = layer

    def take(self, layer: InnerKVLayer) -> None:
        """The keys that expect() announced have come to their attention."""
        if self._waiting is not layer:
            raise ValueError(
                f"InnerKVCache: layer {layer.index} attends twice to the keys of one update(); layers that share keys "
                "are not supported"
            )
        self._waiting = None

    def forget_keys(self) -> None:
        """Keys that expect() announced are not appended: their attention was refused, or never came."""
        self._waiting = None

    def attend(
        self,
        layer: InnerKVLayer,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        spans: Spans | None,
        scaling: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Appends and attends, [batch, heads, tokens, head_dim] each, in chunks. Returns [batch, tokens, heads,
        head_dim]."""
        batch, heads, tokens, head_dim = q.shape
        out = torch.empty(batch, tokens, heads, head_dim, dtype=q.dtype)
        if tokens == 1:  # a decode step, where microseconds count
            rows = to_dlpack(dense(q)), to_dlpack(dense(k)), to_dlpack(dense(v))
            self._step(layer, *rows, to_dlpack(out), spans, scaling, softcap)
            return out
        for first, last in self._chunks(layer, tokens, spans):
            rows = (to_dlpack(dense(states[:, :, first:last])) for states in (q, k, v))
            part = to_dlpack(out[:, first:last])
            self._step(layer, *rows, part, cut(spans, first, last), scaling, softcap)
        return out

    def _step(
        self,
        layer: InnerKVLayer,
        q: Any,
        k: Any,
        v: Any,
        out: Any,
        spans: Spans | None,
        scaling: float | None,
        softcap: float | None,
    ) -> None:
        self._store._core.step(
            layer.index, self._sequences, k, v, q, out, spans, scaling or 0.0, softcap or 0.0, layer.window
        )

    def append(
        self, layer: InnerKVLayer, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: Spans | None
    ) -> None:
        """Appends alone, likewise: what one chunk has filled is quantized by the next."""
        for first, last in chunks(q.shape[2], CHUNK):
            rows = (states[:, :, first:last].transpose(1, 2).contiguous() for states in (k, v, q))
            self._store.append(layer.index, self._sequences, *rows, spans=cut(spans, first, last))

    def _chunks(self, layer: InnerKVLayer, tokens: int, spans: Spans | None) -> list[tuple[int, int]]:
        if self.prefill == "exact":
            return chunks(tokens, CHUNK)
        lengths = [self._store.length(sequence, layer.index) for sequence in self._sequences]
        return page_chunks(tokens, spans, lengths)

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest -`tokens_to_remove` columns of the batch; of each sequence those that are no padding."""
        tokens_to_remove = int(tokens_to_remove)  # transformers before 5.24 gives a tensor
        if tokens_to_remove > 0:
            raise ValueError(
                f"InnerKVCache.crop: {tokens_to_remove}; give a negative number, of the tokens to remove"
            )
        if tokens_to_remove == 0 or self._store is None:
            return
        self.check()
        columns = self.layers[0].columns
        if self._on_device:
            self.verify()
            total = int(self.state[1])
            keep = max(total + tokens_to_remove, 0)
            self._on_device.crop(columns, total, keep)
            self.state[1] = keep
            for layer in self.layers:
                layer.started = layer.started and keep > 0
            return
        self._keep(columns, max(columns.total + tokens_to_remove, 0))

    def _keep(self, columns: Columns, keep: int) -> None:
        """The first `keep` of a layer's columns, in all layers; ValueError, and nothing has changed."""
        self._store.truncate(self._sequences, columns.lengths_at(keep, len(self._sequences)))
        for layer in self.layers:
            layer.columns.truncate(keep)
        self.state[1] = keep

    def take_back(self, layer: InnerKVLayer, error: BaseException) -> None:
        """A call has failed in `layer`, which may have some of its tokens, and those before all: none keeps any."""
        try:
            self._keep(layer.columns, layer.columns.total)
        except (ValueError, MemoryError) as failure:
            self.spoil()
            raise RuntimeError(
                f"InnerKVCache: a forward call failed, and its tokens cannot be taken back ({failure}); reset() the "
                f"cache. It failed with: {error}"
            ) from error

    def spoil(self) -> None:
        """A call has failed, and some layers have its tokens: there is nothing right to do with the cache but reset()."""
        self._spoilt = True

    def check(self) -> None:
        """ValueError where a call has spoilt the cache."""
        if self._spoilt:
            raise ValueError("InnerKVCache: a call that failed has left tokens here; reset() the cache")

    def reset(self) -> None:
        """Forgets all tokens; the next batch may have another size, but on a device, where the memory is kept for graphs
        that were made with it."""
        columns = Columns()
        for layer in self.layers:
            layer.columns = columns if layer.on_device else Columns()
            layer.started = False
        self.state[1] = 0
        self._spoilt = False
        if self._on_device:
            self._on_device.reset()
            self._waiting = None
        else:
            self._forget()

    def verify(self) -> None:
        """On a device: waits, and tells what steps have refused (`innerkv.Cache.verify`). Sequences then differ in what
        they have of the calls since, and the next call wants reset()."""
        if self._store is None:
            return
        try:
            self._store.verify()
        except Exception:
            self.spoil()
            raise

    def fork(self) -> InnerKVCache:
        """A cache with the same contents, sharing pages until one of the two changes them: a long prompt that is
        processed once and continued many times. copy.copy and copy.deepcopy do the same. Not on a device."""
        if self._on_device:
            raise ValueError("InnerKVCache.fork: not there on a device; give each batch a cache of its own")
        other = type(self).__new__(type(self))
        # At no time does it hold sequences of ours, which would go with it.
        other.__dict__.update(self.__dict__ | {"_sequences": [], "_waiting": None})
        other.number = register(other)
        other.state = new_state(other.number, self.get_seq_length())
        other.layers = [copy.copy(layer) for layer in self.layers]
        for layer in other.layers:
            layer.owner = weakref.ref(other)
            layer.state, layer.number = other.state, other.number
            layer.columns = copy.deepcopy(layer.columns)
        for sequence in self._sequences:
            other._sequences.append(self._store.fork(sequence))
        return other

    def __copy__(self) -> InnerKVCache:
        return self.fork()

    def __deepcopy__(self, memo: Any) -> InnerKVCache:
        return self.fork()

    def __del__(self) -> None:
        if getattr(self, "_store", None) is not None:
            self._forget()

    def _forget(self) -> None:
        """Removes the sequences: others in the same store, forks of these, stay."""
        if self._on_device is None:
            for sequence in self._sequences:
                self._store.remove(sequence)
        self._store = self._on_device = None
        self._sequences = []
        self._waiting = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select([i for i in range(len(self._sequences)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        self._select(indices.tolist())

    def _select(self, indices: list[int]) -> None:
        """Sequence i becomes what sequence indices[i] was: the first that asks keeps it, others get forks."""
        if self._store is None:
            return
        if self._on_device:
            self._on_device.reorder(indices)
            self._sequences = self._on_device.slots
            self.layers[0].columns.select(indices)
            return
        old, kept, new = self._sequences, set(), []
        try:
            for index in indices:
                new.append(self._store.fork(old[index]) if index in kept else old[index])
                kept.add(index)
        except Exception:
            for sequence in set(new) - set(old):
                self._store.remove(sequence)
            raise
        for index, sequence in enumerate(old):
            if index not in kept:
                self._store.remove(sequence)
        self._sequences = new
        for layer in self.layers:
            layer.columns.select(indices)
