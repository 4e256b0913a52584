# SPDX-License-Identifier: Apache-2.0
"""The cache in Hugging Face transformers 5.

    from innerkv.transformers import InnerKVCache

    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="innerkv")
    model.generate(**inputs, cache=InnerKVCache(model.config))

Importing this module registers the attention "innerkv". docs/python.md says what works and what is refused.
"""

from transformers import AttentionInterface, AttentionMaskInterface

from .attention import attention_forward
from .cache import InnerKVCache
from .graph import DecodeGraph
from .masks import padding_mask

AttentionInterface.register("innerkv", attention_forward)
AttentionMaskInterface.register("innerkv", padding_mask)

__all__ = ["DecodeGraph", "InnerKVCache"]
