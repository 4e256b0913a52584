# SPDX-License-Identifier: Apache-2.0
"""Attention on a cache as an operator of torch: what torch.compile puts into a graph instead of looking inside.

A graph takes tensors alone, so a cache is known by the number in its `state`. Every call changes `state`, as
far as torch knows: so calls stay in their order, and none is left out or merged with another.
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


def new_state(cache: InnerKVCache, columns: int = 0) -> torch.Tensor:
    """int64 [2]: the number of `cache`, and how many columns of the batch it has seen."""
    number = next(_numbers)
    _caches[number] = cache
    with torch.inference_mode(False):  # or it could not change outside of what it was made in
        return torch.tensor([number, columns], device="cpu")


class Traced:
    """While torch.compile traces: the layer whose update() has come and whose attention has not."""

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
    cache = _caches.get(int(state[0]))
    if cache is None:
        raise RuntimeError(
            "innerkv::attend: the cache of this state is gone; hold the InnerKVCache while the model runs"
        )
    cache.expect(cache.layers[layer], key)
    out = cache.layers[layer].attend(query, key, value, mask, scaling or None, softcap or None)
    state.copy_(cache.state)  # a graph may hand over a copy, which it writes back at its end
    return out


@attend.register_fake
def _(query, key, value, mask, state, layer, scaling, softcap):
    batch, heads, tokens, head_dim = query.shape
    return query.new_empty((batch, tokens, heads, head_dim))
