#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model split over processes by its tensor-parallel plan: each holds the cache of the KV heads that it computes.

    torchrun --nproc-per-node 2 tensor_parallel.py [MODEL] [PROMPT]
"""

import sys

import torch
from torch.distributed import destroy_process_group, get_rank, get_world_size, init_process_group
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig

from innerkv.transformers import InnerKVCache

NAME = sys.argv[1] if len(sys.argv) > 1 else "meta-llama/Llama-3.1-8B-Instruct"
PROMPT = sys.argv[2] if len(sys.argv) > 2 else "The capital of France is"

init_process_group("gloo")
torch.manual_seed(0)  # every process draws the same tokens
tokenizer = AutoTokenizer.from_pretrained(NAME)
model = AutoModelForCausalLM.from_pretrained(
    NAME, attn_implementation="innerkv", distributed_config=DistributedConfig(tp_size=get_world_size()))
inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)

cache = InnerKVCache(model.config, preset="base")
output = model.generate(**inputs, cache=cache, max_new_tokens=40, do_sample=True)

print(f"process {get_rank()}: {cache.store.kv_heads} of {cache.shape.kv_heads} KV heads, {cache.nbytes:,} bytes: "
      f"{output[0].tolist()}", flush=True)
if get_rank() == 0:
    print(tokenizer.decode(output[0], skip_special_tokens=True))
destroy_process_group()
