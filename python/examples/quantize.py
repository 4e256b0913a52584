#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the codecs do to an array: squared error of each, on values like those of keys."""

import numpy as np

import innerkv

rng = np.random.default_rng(0)
x = rng.standard_normal((1024, 128)).astype(np.float32)
x[:, ::16] *= 6  # a few channels are large

for codec in ("symmetric", "affine", "asymmetric"):
    for bits in (2, 3, 4):
        error = np.mean((innerkv.dequantize(innerkv.quantize(x, bits, codec)) - x) ** 2)
        print(f"{codec:10} {bits} bits   {error:.4f}")

page = innerkv.quantize_page(x[:32], x[32:64], "base")
print(f"a page of 32 tokens: {page.size} bytes, {8 * page.size / (2 * 32 * 128)} bits a value")
