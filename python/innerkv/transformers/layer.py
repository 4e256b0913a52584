# SPDX-License-Identifier: Apache-2.0
"""A layer of an InnerKVCache: what the models of transformers hand their keys and values to."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import CacheLayerMixin

from ..arrays import Spans
from .attention import full_mask, new_columns, plain_attention
from .columns import PAGE, Columns
from .device import Padding, aligned, unaligned
from .masks import is_graph, spans_of
from .ops import traced

if TYPE_CHECKING:
    from .cache import InnerKVCache


class InnerKVLayer(CacheLayerMixin):
    """A layer of an InnerKVCache, as the models and masks of transformers see it."""

    is_croppable = True
    is_compileable = True
    supports_early_init = False

    def __init__(self, cache: InnerKVCache, index: int, window: int) -> None:
        super().__init__()
        self.owner = weakref.ref(cache)  # a cache that nobody holds gives its pages back at once
        self.state = cache.state
        self.number = cache.number
        self.on_device = False
        self.started = False  # on a device: has tokens, or a graph that gives it some
        self.config = cache.config
        self.index = index
        self.is_last = index == cache.shape.layers - 1
        self.window = window
        self.is_sliding = window > 0
        self.columns = Columns()

    def __repr__(self) -> str:
        return f"InnerKVLayer({self.columns.total} tokens)"

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives the new keys and values back, marked: attention appends them."""
        if torch.compiler.is_compiling():
            check_attention(self.config)
            traced.layer = self
            return key_states, value_states
        self.owner().expect(self, key_states)
        key_states.innerkv_layer = self
        return key_states, value_states

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        cache = self.owner()
        cache.take(self)
        if self.on_device:
            return self._attend_on_device(query, key, value, mask, scaling, softcap)
        tokens = query.shape[2]
        spans = None if mask is None else self._spans(mask, tokens)
        columns = self.columns
        try:
            if columns.total == 0 and tokens > PAGE and cache.prefill == "exact":
                full = full_mask(mask, tokens, tokens, self.window)
                out = plain_attention(query, key, value, full, scaling, softcap=softcap)
                cache.append(self, query, key, value, spans)
            else:
                out = cache.attend(self, query, key, value, spans, scaling, softcap)
        except BaseException as error:
            cache.take_back(self, error)
            raise
        columns.add(tokens, spans)
        if self.is_last:
            self.state[1] = columns.total
        return out

    def _attend_on_device(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        tokens = query.shape[2]
        padding = getattr(mask, "innerkv_padding", None)
        if padding is None:
            padding = Padding.of(mask if mask is None else new_columns(mask, tokens))
        if mask is not None:
            mask.innerkv_padding = padding  # for the layers behind
        rows = aligned(padding, query, key, value)
        spans = getattr(mask, "innerkv_spans", None)
        out = self.attend_rows(*rows, padding.counts, scaling, softcap, spans)
        if self.is_last:
            self.state[1] += tokens
        return unaligned(padding, out)

    def attend_rows(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        counts: torch.Tensor | None,
        scaling: float | None,
        softcap: float | None,
        spans: Spans | None = None,
    ) -> torch.Tensor:
        """On a device, each sequence's tokens from column 0 on; `spans` tells where they were. Returns [batch, tokens,
        q_heads, head_dim]. OutOfPages where there are too few for all layers, and the cache is as it was; any other error
        leaves it spoilt."""
        cache = self.owner()
        batch = cache._on_device
        tokens = query.shape[2]
        if self.index == 0:
            batch.take(tokens)  # before any layer has one of them
        try:
            if tokens > PAGE and not self.started:
                mask = full_mask(None, tokens, tokens, self.window, query.device)
                out = plain_attention(query, key, value, mask, scaling, softcap=softcap)
                batch.append(self.index, query, key, value, counts)
            else:
                out = batch.attend(self.index, query, key, value, counts, scaling, softcap, self.window)
            self.started = True
            if tokens > 1 and not is_graph(query):
                batch.prepare(query.shape[1], scaling, softcap, self.window)
                self.count(tokens, spans)
        except BaseException:
            cache.spoil()
            raise
        return out

    def count(self, tokens: int, spans: Spans | None) -> None:
        """Columns behind those of the calls before, which a call that may wait looks at."""
        if not self.is_last:
            return
        self.owner().verify()
        total = int(self.state[1])  # more than the columns that are known, where graphs have run
        if total > self.columns.total:
            self.columns.add(total - self.columns.total, None)
        self.columns.add(tokens, spans)

    @staticmethod
    def _spans(mask: torch.Tensor, tokens: int) -> Spans | None:
        if hasattr(mask, "innerkv_spans"):
            return mask.innerkv_spans
        return spans_of(new_columns(mask, tokens))

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the cache opens its store with the first keys."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """New columns alone: the padding of older ones is known. So masks keep their shape from step to step."""
        return query_length, 0

    def get_seq_length(self) -> int | torch.Tensor:
        """Columns of the batch so far, padding counted; a tensor in a graph, which outlives the step, and on a device,
        where graphs count on."""
        if torch.compiler.is_compiling():
            return self.state[1]
        if self.on_device and self.started:
            return self.state[1].clone()
        return self.columns.total

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        raise ValueError("InnerKVCache: offloading is not supported; put the model on the CPU, and the cache is there")


def check_attention(config: Any) -> None:
    if config._attn_implementation != "innerkv":
        raise ValueError(
            f'InnerKVCache: the model runs with attn_implementation="{config._attn_implementation}"; load it with '
            'attn_implementation="innerkv" or call model.set_attn_implementation("innerkv")'
        )
