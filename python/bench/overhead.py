#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a decode step costs a layer besides attention on its history, in microseconds.

    overhead.py [--layers N] [--batch N] [--rounds N] [--json]

As a model calls them: InnerKVCache's update() with the new keys and values, then the attention function. Sequences
are short, with one KV head and one thread, so that next to nothing is computed: `layer` is an upper bound of what
Python costs. `call` is the part of it in the compiled module, the library's own time included.
"""

import argparse
import json
import statistics
import time
from types import SimpleNamespace

import torch
from torch.utils.dlpack import to_dlpack
from transformers import LlamaConfig

import innerkv
from innerkv.transformers import InnerKVCache, attention_forward

HEAD_DIM = 64
LONGEST = 64  # tokens, none of them quantized


class Model:
    """The layers of a model that has attention alone."""

    def __init__(self, layers, batch):
        self.config = LlamaConfig(num_hidden_layers=layers, num_attention_heads=1, num_key_value_heads=1,
                                  hidden_size=HEAD_DIM, attn_implementation="innerkv")
        self.module = SimpleNamespace(training=False)
        # As models make them: heads of a projection, transposed.
        self.q, self.k, self.v = (torch.randn(batch, 1, 1, HEAD_DIM).transpose(1, 2) for _ in range(3))

    def step(self, cache):
        for layer in range(self.config.num_hidden_layers):
            k, v = cache.update(self.k, self.v, layer)
            attention_forward(self.module, self.q, k, v, None, scaling=0.125)


def rounds_of(model, rounds, step):
    """Nanoseconds of `step(cache)`, once a round, on caches of up to LONGEST tokens."""
    for index in range(rounds):
        if index % LONGEST == 0:
            cache = InnerKVCache(model.config, "base", max_length=2 * LONGEST)
            model.step(cache)  # opens it
        start = time.perf_counter_ns()
        step(cache)
        yield time.perf_counter_ns() - start


def calls(model):
    """The compiled part of Model.step."""
    out = torch.empty(model.q.shape).transpose(1, 2)

    def step(cache):
        for layer in range(model.config.num_hidden_layers):
            cache._step(cache.layers[layer], *map(to_dlpack, (model.q, model.k, model.v, out)), None, 0.125, None)

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=640)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    innerkv.set_num_threads(1)
    model = Model(options.layers, options.batch)
    results = {}
    with torch.inference_mode():
        for name, step in (("layer", model.step), ("call", calls(model))):
            times = [time / 1000 / options.layers for time in rounds_of(model, options.rounds, step)]
            results[name] = {"least_us": min(times), "median_us": statistics.median(times)}
    if options.json:
        print(json.dumps(results))
    else:
        for name, result in results.items():
            print(f"{name:6} least {result['least_us']:5.1f}  median {result['median_us']:5.1f} microseconds")


if __name__ == "__main__":
    main()
