# SPDX-License-Identifier: Apache-2.0
"""What a model's config says about its cache; what is not supported is refused here, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import get_layer_types_and_kwargs

from ..device import device_index


@dataclass(frozen=True)
class ModelShape:
    layers: int
    kv_heads: int
    head_dim: int
    sliding_window: list[int]  #: one a layer, 0 for none
    max_length: int  #: positions that the model knows


def model_shape(config: Any) -> ModelShape:
    """Reads the decoder's part of a config. ValueError naming what innerkv does not have."""
    name = getattr(config, "model_type", type(config).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"InnerKVCache: {name} has cross-attention; decoder-only models are supported. Use "
            "transformers' EncoderDecoderCache for it"
        )
    text = config.get_text_config(decoder=True)
    if getattr(text, "cross_attention_layers", None) or getattr(text, "add_cross_attention", False):
        raise ValueError(
            f"InnerKVCache: {name} has layers that attend across to an encoder; decoder-only models are supported. Use "
            "transformers' DynamicCache for it"
        )
    if getattr(text, "kv_lora_rank", None):
        raise ValueError(
            f"InnerKVCache: {name} has multi-head latent attention (kv_lora_rank {text.kv_lora_rank}); keys "
            "and values per head are supported. Use transformers' DynamicCache for it"
        )
    kinds, arguments = get_layer_types_and_kwargs(text)
    if isinstance(arguments, dict):  # transformers before 5.24: one for all layers
        arguments = [arguments if kind == "sliding_attention" else {} for kind in kinds]
    for layer, kind in enumerate(kinds):
        if kind not in ("full_attention", "sliding_attention"):
            raise ValueError(
                f"InnerKVCache: layer {layer} of {name} is {kind}; full_attention and sliding_attention are "
                "supported. Use transformers' DynamicCache for it"
            )
    q_heads = text.num_attention_heads
    # Some configs have the key and the value None.
    kv_heads = getattr(text, "num_key_value_heads", None) or q_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // q_heads
    v_head_dim = getattr(text, "v_head_dim", None) or head_dim
    if v_head_dim != head_dim:
        raise ValueError(
            f"InnerKVCache: {name} has keys of {head_dim} channels and values of {v_head_dim}; they must be "
            "equal. Use transformers' DynamicCache for it"
        )
    windows = [given.get("sliding_window") or 0 for given in arguments]
    return ModelShape(
        len(kinds), kv_heads, head_dim, windows, getattr(text, "max_position_embeddings", None) or 32768
    )


def check_device(device: torch.device | str) -> torch.device:
    """Where a cache for a model on `device` is, with its number. ValueError where there are no kernels for it."""
    device = torch.device(device)
    if device.type == "cpu":
        return device
    try:
        return torch.device("cuda", device_index(device))
    except ValueError as error:
        raise ValueError(f"InnerKVCache: the model runs on {device}; {error}, and put the model there") from None


def has_own_memory(device: torch.device) -> bool:
    """Not the CPU: batches are DeviceBatch's."""
    return device.type == "cuda"
