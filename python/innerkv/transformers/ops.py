# SPDX-License-Identifier: Apache-2.0
"""Attention on a cache as operators of torch: what torch.compile puts into a graph instead of looking inside.

On the CPU a graph takes tensors alone, so a cache is known by the number in its `state`. On a device nobody may wait
for what a tensor holds, and a CUDA graph is one cache's anyway: there the number is an argument. Every call changes
`state`, as far as torch knows: so calls stay in their order, and none is left out or merged with another.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .cache import InnerKVCache, InnerKVLayer

_caches: weakref.WeakValueDictionary[int, InnerKVCache] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def register(cache: InnerKVCache) -> int:
    """A number that the operators know `cache` by."""
    number = next(_numbers)
    _caches[number] = cache
    return number


def new_state(number: int, columns: int = 0, device: torch.device | str = "cpu") -> torch.Tensor:
    """int64 [2]: the number of a cache, and how many columns of the batch it has seen."""
    with torch.inference_mode(False):  # or it could not change outside of what it was made in
        state = torch.tensor([number, columns], device=device)
    if state.is_cuda:
        torch._dynamo.mark_static_address(state)  # or torch.compile would make no CUDA graphs
    return state


def _cache_of(number: int) -> InnerKVCache:
    cache = _caches.get(number)
    if cache is None:
        raise RuntimeError(
            "innerkv::attend: the cache of this graph is gone; hold the InnerKVCache while the model runs"
        )
    return cache


class Traced:
    """While torch.compile traces: the layer whose update() has come and whose attention has not.

    One a process and not one a thread: what a graph stored in a threading.local would be lost where the graph ends in
    between. So models whose graphs do must not run in several threads at once.
    """

    layer: InnerKVLayer | None = None


traced = Traced()


@torch.library.custom_op("innerkv::attend", mutates_args=("state",))
def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    state: torch.Tensor,
    layer: int,
    scaling: float,
    softcap: float,
) -> torch.Tensor:
    """Appends keys and values to a layer of a cache and attends to what it then has.

    query [batch, q_heads, tokens, head_dim], key and value likewise with the KV heads; mask bool [batch,
    tokens], False for padding. scaling 0: 1 / sqrt(head_dim); softcap 0: none. Returns [batch, tokens,
    q_heads, head_dim]. Errors are InnerKVCache's.
    """
    cache = _cache_of(int(state[0]))
    cache.expect(cache.layers[layer], key)
    out = cache.layers[layer].attend(query, key, value, mask, scaling or None, softcap or None)
    state.copy_(cache.state)  # a graph may hand over a copy, which it writes back at its end
    return out


@attend.register_fake
def _(query, key, value, mask, state, layer, scaling, softcap):
    batch, heads, tokens, head_dim = query.shape
    return query.new_empty((batch, tokens, heads, head_dim))


@torch.library.custom_op("innerkv::attend_on_device", mutates_args=("state",))
def attend_on_device(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    counts: torch.Tensor | None,
    state: torch.Tensor,
    cache: int,
    layer: int,
    scaling: float,
    softcap: float,
) -> torch.Tensor:
    """As `attend`, of cache number `cache`, on a device and without a wait. counts int32 [batch]: how many tokens of
    each sequence count, the first ones; None: all."""
    owner = _cache_of(cache)
    owner.expect(owner.layers[layer], key)
    owner.take(owner.layers[layer])
    out = owner.layers[layer].attend_rows(query, key, value, counts, scaling or None, softcap or None)
    if owner.layers[layer].is_last:
        state[1] += query.shape[2]
    return out


@attend_on_device.register_fake
def _(query, key, value, counts, state, cache, layer, scaling, softcap):
    batch, heads, tokens, head_dim = query.shape
    return query.new_empty((batch, tokens, heads, head_dim))
