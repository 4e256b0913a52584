#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Attention on a CUDA device: ours beside PyTorch's flash and cuDNN attention and, where it is installed, FlashInfer's
XQA, all by one method: events around a replay of a CUDA graph that holds one call, the second-level cache filled with
something else before. Microseconds, the median of 31 replays.

With --tokens a chunk of so many query tokens at the end of the context. Each of ours sees what stands before it; PyTorch's,
flash and cuDNN alike, are asked without a mask: every query sees all of the context. TFLOP/s, of what is seen, compare
the two.

    bench/peers/device_peers.py [--ours build-cuda/bench/cuda/cuda_attention_timing] [--presets base,small]
                                [--q-heads 32] [--kv-heads 8] [--head-dim 128] [--tokens 1]
                                [--cases 1x8192,8x32768] [--peers flash,cudnn,xqa,gemv] [--json FILE]

gemv: what the InnerQ paper compares with, the two products of attention alone, in fp16 by cuBLAS, one KV head a query
head and one sequence. Ours beside it is all of attention.
"""

import argparse
import json
import math
import re
import subprocess
import sys

try:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:  # --help and what is wrong with arguments need none
    torch = None

CASES = "1x8192,1x32768,1x131072,8x8192,8x32768,32x8192"
CHUNK_CASES = "1x8192,1x32768,1x131072,4x32768"
FLUSH_BYTES = 128 << 20
ROUNDS = 31
PAGE_TOKENS = 64  # of XQA's pages


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


def sdpa(backend):
    def make(batch, context, heads, tokens):
        q_heads, kv_heads, head_dim = heads
        q = torch.randn(batch, q_heads, tokens, head_dim, device="cuda", dtype=torch.bfloat16)
        k = torch.randn(batch, kv_heads, context, head_dim, device="cuda", dtype=torch.bfloat16)
        v = torch.randn_like(k)

        def call():
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        return call

    return make


def xqa(dtype):
    from flashinfer.decode import xqa_batch_decode_with_kv_cache

    workspace = torch.zeros(256 << 20, dtype=torch.uint8, device="cuda")

    def make(batch, context, heads, _tokens):
        q_heads, kv_heads, head_dim = heads
        q = torch.randn(batch, q_heads, head_dim, device="cuda", dtype=torch.bfloat16)
        pages = context // PAGE_TOKENS
        shape = (batch * pages, PAGE_TOKENS, kv_heads, head_dim)
        k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(dtype) for _ in range(2))
        table = torch.arange(batch * pages, device="cuda", dtype=torch.int32).reshape(batch, pages)
        lengths = torch.full((batch,), context, device="cuda", dtype=torch.uint32)
        out = torch.empty_like(q)
        return lambda: xqa_batch_decode_with_kv_cache(
            q, (k, v), workspace, table, lengths, context, 1 / math.sqrt(head_dim), 1.0, out=out)

    return make


def gemv(product):
    def make(batch, context, heads, _tokens):
        q_heads, _, head_dim = heads
        matrix = torch.randn(batch * q_heads, context, head_dim, device="cuda", dtype=torch.float16)
        if product == "qK":
            vector = torch.randn(batch * q_heads, head_dim, 1, device="cuda", dtype=torch.float16)
            return lambda: torch.bmm(matrix, vector)
        vector = torch.rand(batch * q_heads, 1, context, device="cuda", dtype=torch.float16)
        return lambda: torch.bmm(vector, matrix)

    return make


def peers(wanted, tokens):
    """Name and maker of calls of each peer there is; XQA and GEMV are for one token."""
    found = {}
    if "flash" in wanted:
        found["flash bf16"] = sdpa(SDPBackend.FLASH_ATTENTION)
    if "cudnn" in wanted:
        found["cuDNN bf16"] = sdpa(SDPBackend.CUDNN_ATTENTION)
    if "xqa" in wanted and tokens == 1:
        try:
            found["XQA bf16"] = xqa(torch.bfloat16)
            found["XQA fp8"] = xqa(torch.float8_e4m3fn)
        except ImportError as error:
            print(f"FlashInfer is not installed, so no XQA: {error}", file=sys.stderr)
    if "gemv" in wanted and tokens == 1:
        found["cuBLAS q K fp16"] = gemv("qK")
        found["cuBLAS a V fp16"] = gemv("aV")
    return found


def our_times(program, presets, heads, tokens, cases):
    """{(preset, batch, context): (microseconds, percent of the read bandwidth)}, and the program's first line."""
    command = [program, presets, *map(str, heads), str(tokens), cases]
    try:
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    except FileNotFoundError:
        sys.exit(f"{program} is not there; cmake --build build-cuda makes it, --ours names another place")
    except subprocess.CalledProcessError as error:  # it has said why
        sys.exit(f"{' '.join(command)} failed with status {error.returncode}")
    times = {}
    for line in lines[1:]:
        fields = re.match(r"(\S+)\s+(\d+) x (\d+)\s+events\s+([\d.]+) us.* ([\d.]+)%", line)
        times[fields[1], int(fields[2]), int(fields[3])] = float(fields[4]), float(fields[5])
    return times, lines[0]


def tera_per_s(us, rows, keys, head_dim):
    """Of two products, each a multiplication and an addition a channel."""
    return "-" if us is None else f"{4 * rows * keys * head_dim / us / 1e6:.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", default="build-cuda/bench/cuda/cuda_attention_timing")
    parser.add_argument("--presets", default="base")
    parser.add_argument("--q-heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--cases")
    parser.add_argument("--peers", default="flash,cudnn,xqa")
    parser.add_argument("--json")
    options = parser.parse_args()
    if torch is None:
        parser.error("PyTorch is not installed: pip install torch")
    heads = options.q_heads, options.kv_heads, options.head_dim

    cases = options.cases or (CHUNK_CASES if options.tokens > 1 else CASES)
    ours, head = our_times(options.ours, options.presets, heads, options.tokens, cases)
    print(head)
    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    flush = torch.ones(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    makers = peers(options.peers.split(","), options.tokens)
    names = options.presets.split(",")
    share = "TFLOP/s" if options.tokens > 1 else "of read bandwidth"
    print("| sequences x context | " + " | ".join(f"`{name}`" for name in names) + f" | {share} | "
          + " | ".join(makers) + " |" + (" TFLOP/s |" if options.tokens > 1 else ""))
    print("|---" * (2 + len(names) + len(makers) + (options.tokens > 1)) + "|")
    report = []
    for batch, context in (map(int, case.split("x")) for case in cases.split(",")):
        row = {name: ours[name, batch, context][0] for name in names}
        for name, make in makers.items():
            try:
                row[name] = median_us(make(batch, context, heads, options.tokens), flush)
            except RuntimeError as error:  # a peer that does not support the case
                print(f"{name}, {batch} x {context}: {error}", file=sys.stderr)
                row[name] = None
            torch.cuda.empty_cache()
        cells = [("-" if us is None else f"{us:.1f}") for us in row.values()]
        if options.tokens > 1:
            rows = batch * options.q_heads * options.tokens
            rates = [tera_per_s(us, rows, context - (options.tokens - 1) / 2 * (name in names), options.head_dim)
                     for name, us in row.items()]
            cells.insert(len(names), " / ".join(rates[:len(names)]))
            cells.append(" / ".join(rates[len(names):]))
        else:
            shares = [ours[name, batch, context][1] for name in names]
            cells.insert(len(names), " / ".join(f"{share:.0f}%" for share in shares))
        print(f"| {batch} x {context // 1024}k | " + " | ".join(cells) + " |", flush=True)
        report.append({"batch": batch, "context": context, "us": row})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"head": head, "results": report}, file, indent=1)


if __name__ == "__main__":
    main()
