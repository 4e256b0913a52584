#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding: drafts from the text so far or from a smaller model, wrong ones cropped from the cache.

    assisted.py [MODEL] [SMALLER MODEL]
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from innerkv.transformers import InnerKVCache

NAME = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT = "One two three four. One two three four. One two"

tokenizer = AutoTokenizer.from_pretrained(NAME)
model = AutoModelForCausalLM.from_pretrained(NAME, attn_implementation="innerkv")
inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)

drafts = {"prompt_lookup_num_tokens": 5}
if len(sys.argv) > 2:
    drafts = {"assistant_model": AutoModelForCausalLM.from_pretrained(sys.argv[2])}
for options in ({}, drafts):
    cache = InnerKVCache(model.config)
    output = model.generate(**inputs, **options, cache=cache, max_new_tokens=30,
                            do_sample=False)
    print(list(options), tokenizer.decode(output[0], skip_special_tokens=True))
