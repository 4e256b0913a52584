#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's scaled_dot_product_attention in bf16 on the cases of cuda_attention_timing, by the same method: events
around a replay of a CUDA graph that holds one call, the second-level cache cold. Prints microseconds, the median of 31.

    bench/cuda/sdpa_timing.py [q_heads [kv_heads [head_dim]]]
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

CASES = ((1, 8192), (1, 32768), (1, 131072), (8, 8192), (8, 32768), (32, 8192))
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
FLUSH_BYTES = 128 << 20
ROUNDS = 31


def median_us(call, flush):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(ROUNDS):
        flush.max()  # reads: what is written would be written back while the call runs
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(1e3 * start.elapsed_time(stop))
    return sorted(times)[ROUNDS // 2]


def main():
    q_heads, kv_heads, head_dim = (list(map(int, sys.argv[1:])) + [32, 8, 128][len(sys.argv) - 1:])
    flush = torch.ones(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    print(torch.cuda.get_device_name(), f"{q_heads} query heads on {kv_heads}, {head_dim} channels")
    for batch, context in CASES:
        q = torch.randn(batch, q_heads, 1, head_dim, device="cuda", dtype=torch.bfloat16)
        k = torch.randn(batch, kv_heads, context, head_dim, device="cuda", dtype=torch.bfloat16)
        v = torch.randn_like(k)
        row = f"{batch:3} x {context:<7}"
        for name, backend in BACKENDS.items():
            with sdpa_kernel(backend):
                us = median_us(lambda: torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, enable_gqa=True), flush)
            row += f"  {name} {us:7.1f} us"
        print(row, flush=True)


if __name__ == "__main__":
    main()
