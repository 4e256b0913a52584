#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Text from a model on a CUDA device, its decode steps one captured graph: the host only says "again".

    decode_graph.py [MODEL] [PROMPT]
"""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from innerkv.transformers import DecodeGraph, InnerKVCache

NAME = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT = sys.argv[2] if len(sys.argv) > 2 else "The capital of France is"
STEPS = 40


@torch.no_grad()
def main():
    tokenizer = AutoTokenizer.from_pretrained(NAME)
    model = AutoModelForCausalLM.from_pretrained(NAME, attn_implementation="innerkv", dtype=torch.bfloat16).cuda()
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids.cuda()
    cache = InnerKVCache(model.config, preset="base", max_length=prompt.shape[1] + STEPS)
    new = model(prompt, cache=cache).logits[:, -1].argmax(-1, keepdim=True)
    step = DecodeGraph(model, cache)
    written = [new]
    for count in range(1, STEPS):
        if count == 3:  # the first step ran as always, the second was captured
            torch.cuda.synchronize()
            start = time.perf_counter()
        new = step(new).argmax(-1, keepdim=True)  # nobody waits for it here
        written.append(new)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    cache.verify()  # of all steps
    print(tokenizer.decode(torch.cat([prompt, *written], 1)[0], skip_special_tokens=True))
    print(f"{(STEPS - 3) / seconds:.0f} tokens a second, {cache.nbytes:,} bytes of cache")


if torch.cuda.is_available():
    main()
else:
    print("skipped: torch finds no CUDA device")
