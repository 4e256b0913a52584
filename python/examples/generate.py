#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Text from a Hugging Face model on a quantized cache: the two lines that change are marked.

    generate.py [MODEL] [PROMPT]
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from innerkv.transformers import InnerKVCache

NAME = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT = sys.argv[2] if len(sys.argv) > 2 else "The capital of France is"

tokenizer = AutoTokenizer.from_pretrained(NAME)
model = AutoModelForCausalLM.from_pretrained(NAME, attn_implementation="innerkv")  # this one
inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)

cache = InnerKVCache(model.config, preset="base")  # and this one
output = model.generate(**inputs, cache=cache, max_new_tokens=40, do_sample=False)

print(tokenizer.decode(output[0], skip_special_tokens=True))
plan = cache.plan(context=8192)
print(f"{cache.get_seq_length()} tokens in {cache.nbytes:,} bytes; "
      f"at 8192 tokens {plan.ratio:.2f} times smaller than f16")
