#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Decoding on transformers' caches and on ours: time, memory, and how far predictions are from DynamicCache's.

    caches.py MODEL --text FILE [--context N,N,...] [--tokens N] [--cache NAME,NAME,...] [--json]

MODEL is a name or folder for from_pretrained, or a GGUF file. Each cache reads the first N tokens of the text in one
call, then the next ones one by one, all caches in turn, so that they see the same moments of the machine. Caches: dynamic, static,
quanto:BITS, hqq:BITS (transformers' QuantizedCache with its other settings), innerkv:PRESET.
"""

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers

from innerkv.transformers import InnerKVCache

CACHES = "dynamic,static,hqq:4,quanto:4,innerkv:f16,innerkv:base,innerkv:small"
FIELDS = ("median_ms", "least_ms", "cache_bytes", "peak_bytes", "kld_mean", "top1")


def new_cache(name, config, length):
    kind, _, variant = name.partition(":")
    if kind == "dynamic":
        return transformers.DynamicCache(config=config)
    if kind == "static":
        return transformers.StaticCache(config=config, max_cache_len=length)
    if kind == "innerkv":
        return InnerKVCache(config, variant, max_length=length)
    if kind in ("quanto", "hqq"):
        axis = 1 if kind == "hqq" else 0  # what its kernels are for, transformers' documentation says
        return transformers.QuantizedCache(kind, config, nbits=int(variant), axis_key=axis, axis_value=axis)
    raise ValueError(f'cache "{name}"; there are dynamic, static, quanto:BITS, hqq:BITS and innerkv:PRESET')


def source_of(model):
    """For from_pretrained. A GGUF file is one of its folder."""
    file = Path(model)
    if file.suffix == ".gguf":
        return {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    return {"pretrained_model_name_or_path": model}


def nbytes(held):
    """Of tensors, wrapped or packed, however they are nested."""
    if isinstance(held, torch.Tensor):
        if hasattr(held, "__tensor_flatten__"):
            return sum(nbytes(getattr(held, name)) for name in held.__tensor_flatten__()[0])
        return held.nbytes
    if isinstance(held, dict):
        held = tuple(held.values())
    return sum(map(nbytes, held)) if isinstance(held, (tuple, list)) else 0


def cache_bytes(cache):
    if isinstance(cache, InnerKVCache):
        return cache.nbytes
    names = ("keys", "values", "_quantized_keys", "_quantized_values")
    return sum(nbytes(getattr(layer, name, None)) for layer in cache.layers for name in names)


def resident(field):
    """VmRSS, or VmHWM: the most since it was reset; in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def settle_memory():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    return resident("VmRSS")


class Contender:
    """A cache behind a prompt."""

    def __init__(self, name, model, prompt, tokens):
        self.name, self.model = name, model
        self.cache = new_cache(name, model.config, prompt.shape[1] + tokens)
        self.times, self.divergences, self.agreements, self.transient = [], [], [], 0
        self._forward(prompt)

    def _forward(self, tokens):
        self.model.set_attn_implementation("innerkv" if isinstance(self.cache, InnerKVCache) else "sdpa")
        start = time.perf_counter()
        logits = self.model(tokens, cache=self.cache, logits_to_keep=1).logits[0, -1]
        return time.perf_counter() - start, logits.double().log_softmax(-1)

    def warm_up(self, token):
        """A step that is not timed; how much more memory than before it was resident at most."""
        before = settle_memory()
        _, logits = self._forward(token)
        self.transient = max(resident("VmHWM") - before, 0)
        return logits

    def step(self, token):
        seconds, logits = self._forward(token)
        self.times.append(1000 * seconds)
        return logits

    def compare(self, expected, logits):
        self.divergences.append(float((expected.exp() * (expected - logits)).sum()))
        self.agreements.append(float(expected.argmax() == logits.argmax()))

    def result(self, context):
        held = cache_bytes(self.cache)
        values = (statistics.median(self.times), min(self.times), held, held + self.transient,
                  statistics.mean(self.divergences), statistics.mean(self.agreements))
        return {"name": self.name, "context": context} | dict(zip(FIELDS, values))


def compare(model, text, context, tokens, names):
    """Results of the caches `names`, of which the first is what others are compared with."""
    contenders = []
    for name in names:
        print(f"{name} reads {context} tokens", file=sys.stderr, flush=True)
        contenders.append(Contender(name, model, text[:, :context], tokens))
    for index in range(tokens):
        token = text[:, context + index : context + index + 1]
        logits = [each.warm_up(token) if index == 0 else each.step(token) for each in contenders]
        for each, own in zip(contenders, logits):
            each.compare(logits[0], own)
    return [each.result(context) for each in contenders]


def table(results):
    yield "| cache | context | ms a token | least | cache, MiB | with a step's needs | mean KLD | same top-1 |"
    yield "|---|---|---|---|---|---|---|---|"
    for result in results:
        median, least, held, peak, kld, top1 = (result[field] for field in FIELDS)
        yield (f"| `{result['name']}` | {result['context']:,} | {median:.1f} | {least:.1f} | {held / 2**20:.1f} "
               f"| {peak / 2**20:.1f} | {kld:.4f} | {100 * top1:.1f}% |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--context", default="2048")
    parser.add_argument("--tokens", type=int, default=64, help="decoded a cache; the first is not timed")
    parser.add_argument("--cache", default=CACHES)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    contexts = [int(context) for context in options.context.split(",")]
    source = source_of(options.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    text = tokenizer(options.text.read_text(encoding="utf-8"), return_tensors="pt").input_ids
    if text.shape[1] < max(contexts) + options.tokens:
        sys.exit(f"error: {options.text} has {text.shape[1]} tokens; {max(contexts) + options.tokens} are needed")
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=getattr(torch, options.dtype))
    results = []
    with torch.inference_mode():
        for context in contexts:
            results += compare(model, text, context, options.tokens, options.cache.split(","))
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "dtype": options.dtype, "results": results}))
    else:
        print("\n".join(table(results)))


if __name__ == "__main__":
    main()
