#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Milliseconds of a decode step on a CUDA device, on transformers' caches and on ours.

    device.py [--shape BATCHxCONTEXT,...] [--cache NAME,...] [--tokens N] [--layers N] [--mode MODE] [--json]

The model has the shape of Llama-3.1-8B and random weights in bfloat16. The history is no prompt's: random keys and
values are appended straight to the caches, for all contenders alike; what a step costs does not depend on them. Each
step's token is the most likely one of the step before, which the host does not wait for: a step is what lies between two
events on the device. Contenders:

    dynamic             DynamicCache, as generate() runs it: no graph
    static              StaticCache, the model compiled with CUDA graphs (torch.compile's mode "reduce-overhead" or MODE)
    innerkv:PRESET      ours, the step captured as it is (DecodeGraph)
    innerkv:PRESET+compile   ours, the model compiled as for static

memory: the most that was allocated while stepping, weights counted; cache: the cache alone.
"""

import argparse
import gc
import json
import statistics
import sys

import torch
import transformers

from innerkv.transformers import DecodeGraph, InnerKVCache
from innerkv.transformers.graph import cache_argument

LLAMA_31_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
SHAPES = "8x32768,8x8192,1x32768"
FIELDS = ("median_ms", "least_ms", "cache_bytes", "memory_bytes")


def new_model(layers):
    config = transformers.LlamaConfig(**(LLAMA_31_8B | {"num_hidden_layers": layers}))
    torch.manual_seed(1)
    with torch.device("cuda"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def history(config, batch, context):
    """Keys and values of a layer, [batch, kv_heads, context, head_dim]: the same for all layers."""
    shape = batch, config.num_key_value_heads, context, config.hidden_size // config.num_attention_heads
    generator = torch.Generator("cuda").manual_seed(2)
    return [torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16) for _ in range(2)]


def fill(cache, keys, values):
    """`cache` behind a history, in all layers."""
    if not isinstance(cache, InnerKVCache):
        for layer in range(len(cache.layers)):
            cache.update(keys, values, layer)
        return
    cache.open(keys)
    for layer in cache.layers:  # as attend_rows does, without attention: keys are the queries too
        cache._on_device.append(layer.index, keys, keys, values, None)
        layer.started = True
        layer.count(keys.shape[2], None)
    cache.state[1] += keys.shape[2]


def new_cache(kind, config, length):
    if kind == "dynamic":
        return transformers.DynamicCache(config=config)
    if kind == "static":
        return transformers.StaticCache(config=config, max_cache_len=length)
    name, _, preset = kind.partition(":")
    if name != "innerkv":
        raise ValueError(f'cache "{kind}"; there are dynamic, static, innerkv:PRESET and innerkv:PRESET+compile')
    return InnerKVCache(config, preset.removesuffix("+compile"), max_length=length)


def stepper(name, model, cache, mode):
    """tokens [batch, 1] to logits [batch, vocabulary]"""
    if name.startswith("innerkv") and not name.endswith("+compile"):
        return DecodeGraph(model, cache)
    argument = cache_argument(model)
    forward = model if name == "dynamic" else torch.compile(model, mode=mode, fullgraph=True)

    def step(tokens):
        torch.compiler.cudagraph_mark_step_begin()
        return forward(tokens, **{argument: cache}).logits[:, -1]

    return step


def cache_bytes(cache):
    if isinstance(cache, InnerKVCache):
        return cache.nbytes
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def measure(name, model, batch, context, tokens, mode):
    torch._dynamo.reset()
    model.set_attn_implementation("innerkv" if name.startswith("innerkv") else "sdpa")
    keys, values = history(model.config, batch, context)
    cache = new_cache(name, model.config, context + tokens + 16)
    fill(cache, keys, values)
    del keys, values
    gc.collect()
    torch.cuda.empty_cache()
    step = stepper(name, model, cache, mode)
    new = torch.ones(batch, 1, dtype=torch.long, device="cuda")
    for _ in range(6):  # compiles, captures
        new = step(new).argmax(-1, keepdim=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(tokens + 1)]
    events[0].record()
    for event in events[1:]:
        new = step(new).argmax(-1, keepdim=True)
        event.record()
    torch.cuda.synchronize()
    times = [before.elapsed_time(after) for before, after in zip(events, events[1:])]
    held = cache_bytes(cache)
    memory = torch.cuda.max_memory_allocated()
    if isinstance(cache, InnerKVCache):
        cache.verify()
        memory += held  # torch knows nothing of it
    values = statistics.median(times), min(times), held, memory
    return {"name": name, "batch": batch, "context": context} | dict(zip(FIELDS, values))


def table(results):
    yield "| cache | sequences | context | ms a step | least | cache, GB | memory, GB |"
    yield "|---|---|---|---|---|---|---|"
    for result in results:
        median, least, held, memory = (result[field] for field in FIELDS)
        yield (f"| `{result['name']}` | {result['batch']} | {result['context']:,} | {median:.2f} | {least:.2f} "
               f"| {held / 1e9:.2f} | {memory / 1e9:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--shape", default=SHAPES)
    parser.add_argument("--cache", default="dynamic,static,innerkv:base")
    parser.add_argument("--tokens", type=int, default=64, help="steps that are timed")
    parser.add_argument("--layers", type=int, default=LLAMA_31_8B["num_hidden_layers"])
    parser.add_argument("--mode", default="reduce-overhead", help="of torch.compile")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device")
    results = []
    with torch.inference_mode():
        model = new_model(options.layers)
        for shape in options.shape.split(","):
            batch, context = map(int, shape.split("x"))
            for name in options.cache.split(","):
                result = measure(name, model, batch, context, options.tokens, options.mode)
                results.append(result)
                print("\n".join(list(table([result]))[2:]), file=sys.stderr, flush=True)
                gc.collect()
                torch.cuda.empty_cache()
    if options.json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__,
                          "transformers": transformers.__version__, "results": results}))
    else:
        print("\n".join(table(results)))


if __name__ == "__main__":
    main()
