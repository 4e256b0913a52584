# SPDX-License-Identifier: Apache-2.0
"""The attention function of attn_implementation="innerkv"."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .device import Padding, aligned, unaligned
from .ops import attend, attend_on_device, traced

#: Arguments of other models' attention that change its result.
UNSUPPORTED = frozenset(("position_bias", "s_aux", "head_mask", "sinks"))


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [batch, q_heads, tokens, head_dim], key and value likewise; returns [batch, tokens, q_heads, head_dim].

    Keys and values that come from InnerKVCache.update are the new ones; they are appended here, where their
    queries are at hand, and attention runs on the cache. Others (no cache, or transformers' own) are all there
    are, and torch attends to them.
    """
    for name in UNSUPPORTED.intersection(kwargs):
        if kwargs[name] is not None:
            raise ValueError(
                f'attn_implementation="innerkv": {type(module).__name__} passes {name}, which is not supported; '
                'use "eager"'
            )
    compiled = traced.layer  # also where a graph ended between update() and here
    layer = compiled or (None if torch.compiler.is_compiling() else getattr(key, "innerkv_layer", None))
    if layer is None:
        if softcap:
            raise ValueError(
                'attn_implementation="innerkv": without an InnerKVCache a soft cap of logits is not supported; '
                'pass cache=InnerKVCache(model.config), or use "eager"'
            )
        mask = full_mask(attention_mask, query.shape[2], key.shape[2], sliding_window or 0, query.device)
        return plain_attention(query, key, value, mask, scaling, dropout), None
    if dropout:
        raise ValueError("InnerKVCache: dropout in attention is for training; call model.eval()")
    if query.requires_grad:
        raise ValueError("InnerKVCache: a cache has no gradients; run the model under torch.no_grad()")
    if compiled is None:
        return layer.attend(query, key, value, attention_mask, scaling, softcap), None
    traced.layer = None
    mask = None if attention_mask is None else new_columns(attention_mask, query.shape[2])
    if layer.on_device:
        padding = Padding.of(mask)
        rows = aligned(padding, query, key, value)
        options = layer.state, layer.number, layer.index, scaling or 0.0, softcap or 0.0
        return unaligned(padding, attend_on_device(*rows, padding.counts, *options)), None
    return attend(query, key, value, mask, layer.state, layer.index, scaling or 0.0, softcap or 0.0), None


def new_columns(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """bool [batch, tokens] of the newest tokens."""
    if mask.ndim != 2:
        raise ValueError(
            f'attn_implementation="innerkv": attention_mask has {mask.ndim} dimensions; give [batch, tokens], '
            "1 for tokens and 0 for padding"
        )
    return mask[:, -tokens:].bool()


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """torch's attention; `mask` None is causal."""
    heads = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1])
    return sdpa_attention_forward(heads, query, key, value, mask, dropout, scaling, is_causal=True)[0]


def full_mask(
    padding: torch.Tensor | None,
    q_length: int,
    kv_length: int,
    sliding_window: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor | None:
    """bool [batch or 1, 1, q_length, kv_length] for queries at the newest positions; None where torch's own
    causal mask is the same."""
    windowed = 0 < sliding_window < kv_length
    if padding is None and not windowed and (q_length == kv_length or q_length == 1):
        return None
    kv = torch.arange(kv_length, device=device)
    q = kv[-q_length:, None]
    mask = kv <= q
    if windowed:
        mask &= kv > q - sliding_window
    mask = mask[None, None]
    return mask if padding is None else mask & padding[:, None, None, -kv_length:]
