# SPDX-License-Identifier: Apache-2.0
"""The attention function of attn_implementation="innerkv"."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .columns import chunks
from .device import Padding, aligned, unaligned
from .ops import attend, attend_on_device, traced

#: Arguments of other models' attention that change its result.
UNSUPPORTED = frozenset(("position_bias", "s_aux", "head_mask", "sinks"))
CAPPED_QUERIES = 256  #: whose capped logits are in memory at once


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
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [batch, q_heads, tokens, head_dim], key and value likewise; returns [batch, tokens, q_heads, head_dim].

    Keys and values that come from InnerKVCache.update are the new ones; they are appended here, where their
    queries are at hand, and attention runs on the cache. Others (no cache, or transformers' own) are all there
    are, and torch attends to them. ValueError at what is not supported, before a cache has changed.
    """
    # At once: nobody else's attention, also after an error, is that of these keys.
    compiled, traced.layer = traced.layer, None  # there also where a graph ended between update() and here
    layer = compiled or (None if torch.compiler.is_compiling() else getattr(key, "innerkv_layer", None))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    gradients = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    reason = refusal(type(module).__name__, kwargs, layer is not None, causal, dropout, gradients)
    if reason is not None:
        if layer is not None and compiled is None:
            layer.owner().forget_keys()
        raise ValueError(reason)
    if layer is None:
        if causal:
            mask = full_mask(attention_mask, query.shape[2], key.shape[2], sliding_window or 0, query.device)
        else:
            mask = None if attention_mask is None else attention_mask[:, None, None, -key.shape[2] :]
        return plain_attention(query, key, value, mask, scaling, dropout, softcap, causal), None
    if compiled is None:
        return layer.attend(query, key, value, attention_mask, scaling, softcap), None
    mask = None if attention_mask is None else new_columns(attention_mask, query.shape[2])
    if layer.on_device:
        padding = Padding.of(mask)
        rows = aligned(padding, query, key, value)
        options = layer.state, layer.number, layer.index, scaling or 0.0, softcap or 0.0
        return unaligned(padding, attend_on_device(*rows, padding.counts, *options)), None
    return attend(query, key, value, mask, layer.state, layer.index, scaling or 0.0, softcap or 0.0), None


def refusal(
    name: str, arguments: dict[str, Any], cached: bool, causal: bool, dropout: float, gradients: bool
) -> str | None:
    """Why attention of a module of class `name`, on an InnerKVCache where it is `cached`, is not there; None where it is."""
    for argument in UNSUPPORTED.intersection(arguments):
        if arguments[argument] is not None:
            return f'attn_implementation="innerkv": {name} passes {argument}, which is not supported; use "eager"'
    if not cached:
        if isinstance(arguments.get("cache"), Cache):
            return (
                f'attn_implementation="innerkv": the model of this {name} knows no argument "cache" and would forget it; '
                "with transformers before 5.24 give past_key_values="
            )
    elif not causal:
        return (
            f"InnerKVCache: {name} attends both ways; causal attention is supported. Use transformers' DynamicCache "
            "for it"
        )
    elif dropout:
        return "InnerKVCache: dropout in attention is for training; call model.eval()"
    elif gradients:
        return "InnerKVCache: a cache has no gradients; run the model under torch.no_grad()"
    return None


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
    softcap: float | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """torch's attention, [batch, heads, tokens, head_dim] to [batch, tokens, heads, head_dim]. `mask` None: all keys,
    or for `causal` those up to a query's own, the last key being the last query's."""
    if softcap:
        return capped_attention(query, key, value, mask, scaling, softcap, causal)
    heads = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1])
    return sdpa_attention_forward(heads, query, key, value, mask, dropout, scaling, is_causal=causal)[0]


def capped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
    causal: bool,
) -> torch.Tensor:
    """With a soft cap of logits, which torch's own has not: in fp32, for some queries at a time."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, 1).float() for states in (key, value))
    tokens, length = query.shape[2], key.shape[2]
    position = torch.arange(length - tokens, length, device=query.device)[:, None]
    out = torch.empty_like(query)
    for first, last in chunks(tokens, CAPPED_QUERIES):
        rows = query[:, :, first:last].float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        logits = softcap * torch.tanh(rows @ key.transpose(2, 3) / softcap)
        if mask is not None:
            seen = mask[:, :, first:last] if mask.shape[2] > 1 else mask
        else:
            seen = torch.arange(length, device=query.device) <= position[first:last] if causal else None
        if seen is not None:
            logits = logits.masked_fill(~seen, torch.finfo(torch.float32).min)  # rows of padding: any numbers
        out[:, :, first:last] = logits.softmax(-1) @ value
    return out.transpose(1, 2)


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
