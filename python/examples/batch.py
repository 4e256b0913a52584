#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A batch of prompts of different lengths, then beam search: padding is not stored, beams share their pages.

    batch.py [MODEL]
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from innerkv.transformers import InnerKVCache

NAME = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPTS = ["Once upon a time", "The three largest cities of Japan are", "Rain"]

tokenizer = AutoTokenizer.from_pretrained(NAME, padding_side="left")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(NAME, attn_implementation="innerkv")
inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False)

for beams in (1, 3):
    cache = InnerKVCache(model.config)
    output = model.generate(**inputs, cache=cache, max_new_tokens=20, num_beams=beams,
                            do_sample=False, pad_token_id=tokenizer.pad_token_id)
    print(f"{beams} beams, {cache.batch_size} sequences, {cache.nbytes:,} bytes")
    for text in tokenizer.batch_decode(output, skip_special_tokens=True):
        print("   ", text)
