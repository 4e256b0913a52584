#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The cache by itself, on numpy arrays: append, attend, memory. `import innerkv` needs no torch."""

import numpy as np

import innerkv

LAYERS, KV_HEADS, Q_HEADS, HEAD_DIM, TOKENS = 2, 2, 8, 128, 2000

print(innerkv.plan(LAYERS, KV_HEADS, HEAD_DIM, "base", context=TOKENS))

rng = np.random.default_rng(0)
cache = innerkv.Cache(LAYERS, KV_HEADS, HEAD_DIM, preset="base", max_tokens=4096, max_sequences=2)
sequence = cache.create()
for first in range(0, TOKENS, 500):  # a prompt, in chunks
    for layer in range(LAYERS):
        k, v = rng.standard_normal((2, 500, KV_HEADS, HEAD_DIM), np.float32)
        q = rng.standard_normal((500, Q_HEADS, HEAD_DIM), np.float32)
        cache.append(layer, sequence, k, v, q)
        out = cache.attend(layer, sequence, q)

print(f"{cache.length(sequence)} tokens in {cache.nbytes:,} bytes, the last output is {out.shape}")

child = cache.fork(sequence)  # shares what it has in common with its parent
cache.truncate(child, 1000)
print(f"a fork of 1000 tokens: {cache.length(child)}, together {cache.nbytes:,} bytes")
