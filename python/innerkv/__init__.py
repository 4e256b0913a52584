# SPDX-License-Identifier: Apache-2.0
"""The KV cache of a language model in 2 to 8 bits a value, and attention on it.

`Cache` holds keys and values and computes attention; `plan` tells its bytes beforehand; `quantize` and
`quantize_page` show what the codecs do. All take and give numpy arrays, torch tensors on the CPU and anything
else that speaks DLPack; torch is not needed. `innerkv.transformers` brings the cache into Hugging Face's
`generate`.

Errors: ValueError for what is not supported, OutOfPages (a MemoryError) where a cache is full, RuntimeError for
the rest. Each says what was asked, what is supported and what to do, and leaves a cache as it was.
"""

from ._core import OutOfPages, __version__, available_isas, get_num_threads, set_num_threads
from .cache import Cache, Usage
from .codecs import QuantizedArray, dequantize, dequantize_page, quantize, quantize_page
from .planning import Plan, Preset, plan, presets

OutOfPages.__module__ = __name__  # what messages name it by

__all__ = [
    "Cache",
    "OutOfPages",
    "Plan",
    "Preset",
    "QuantizedArray",
    "Usage",
    "__version__",
    "available_isas",
    "dequantize",
    "dequantize_page",
    "get_num_threads",
    "plan",
    "presets",
    "quantize",
    "quantize_page",
    "set_num_threads",
]
