# SPDX-License-Identifier: Apache-2.0
"""Attention in float64 with numpy, written from its definition."""

import numpy as np


def attention(q, k, v, first_position=None, scale=None, soft_cap=0.0, sliding_window=0):
    """Causal attention of one sequence.

    q [tokens, q_heads, head_dim], k and v [length, kv_heads, head_dim]. Returns the output, of q's shape, and
    the log-sum-exp [tokens, q_heads].
    """
    q, k, v = (np.asarray(array, np.float64) for array in (q, k, v))
    tokens, q_heads, head_dim = q.shape
    length, kv_heads = k.shape[:2]
    first_position = length - tokens if first_position is None else first_position
    repeats = q_heads // kv_heads
    logits = np.einsum("thd,lhd->htl", q, np.repeat(k, repeats, axis=1))
    logits *= head_dim**-0.5 if scale is None else scale
    if soft_cap:
        logits = soft_cap * np.tanh(logits / soft_cap)
    position = first_position + np.arange(tokens)[:, None]
    seen = np.arange(length)[None] <= position
    if sliding_window:
        seen &= np.arange(length)[None] > position - sliding_window
    logits = np.where(seen, logits, -np.inf)
    largest = logits.max(axis=-1, keepdims=True)
    weights = np.exp(logits - largest)
    total = weights.sum(axis=-1, keepdims=True)
    out = np.einsum("htl,lhd->thd", weights / total, np.repeat(v, repeats, axis=1))
    return out, (np.log(total) + largest)[..., 0].T


def relative_error(actual, expected):
    """L2 norm of the difference, of all elements, over the expected norm."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)
