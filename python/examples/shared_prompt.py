#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A long prompt that is processed once, and questions to it that share its pages.

    shared_prompt.py [MODEL] [FILE]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from innerkv.transformers import InnerKVCache

NAME = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXT = Path(sys.argv[2]).read_text(encoding="utf-8") if len(sys.argv) > 2 else "A fox met a crow. " * 60

tokenizer = AutoTokenizer.from_pretrained(NAME)
model = AutoModelForCausalLM.from_pretrained(NAME, attn_implementation="innerkv")

document = tokenizer(TEXT, return_tensors="pt", return_token_type_ids=False)
prompt = InnerKVCache(model.config)
with torch.no_grad():
    model(**document, cache=prompt)
print(f"{prompt.get_seq_length()} tokens of the document: {prompt.nbytes:,} bytes")

for question in ("\nWho met whom?", "\nWhere?"):
    inputs = tokenizer(TEXT + question, return_tensors="pt", return_token_type_ids=False)
    cache = prompt.fork()
    output = model.generate(**inputs, cache=cache, max_new_tokens=20, do_sample=False)
    print(question.strip(), "->", tokenizer.decode(output[0, inputs.input_ids.shape[1] :]))
    print(f"all sequences together: {cache.nbytes:,} bytes")
