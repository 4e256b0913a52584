# SPDX-License-Identifier: Apache-2.0
"""Small models with random weights, of each family that is supported."""

import tokenizers
import torch
import transformers

COMMON = {
    "vocab_size": 97,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.12,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
# What has no head_dim of its own divides the hidden size.
DIVIDED = COMMON | {"hidden_size": 256, "initializer_range": 0.06}
GEMMA3 = COMMON | {
    "head_dim": 64,
    "sliding_window": 70,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 40,
}

FAMILIES = {
    "llama": ("LlamaConfig", COMMON | {"head_dim": 64}),
    "mistral": ("MistralConfig", COMMON | {"head_dim": 64, "sliding_window": 90}),
    "qwen2": ("Qwen2Config", DIVIDED),
    "qwen3": ("Qwen3Config", COMMON | {"head_dim": 64}),
    "gemma3": ("Gemma3TextConfig", GEMMA3),
    "phi3": ("Phi3Config", DIVIDED | {"num_key_value_heads": 4}),
    "gpt_neox": ("GPTNeoXConfig", {k: v for k, v in DIVIDED.items() if k != "num_key_value_heads"}),
    "mha": ("LlamaConfig", COMMON | {"head_dim": 128, "num_key_value_heads": 4}),
}


def tiny_config(family):
    name, arguments = FAMILIES[family]
    return getattr(transformers, name)(**arguments)


def tiny_model(family="llama", seed=5, implementation="innerkv", **changes):
    """In float32, the same weights for the same seed."""
    config = tiny_config(family)
    for key, value in changes.items():
        setattr(config, key, value)
    config._attn_implementation = implementation
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


def tokens(*shape, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 97, shape, generator=generator)


def left_padded(lengths):
    """Tokens and their mask, rows of `lengths` tokens behind padding."""
    width = max(lengths)
    inputs = tokens(len(lengths), width)
    mask = torch.ones_like(inputs)
    for row, length in enumerate(lengths):
        inputs[row, : width - length] = 0
        mask[row, : width - length] = 0
    return inputs, mask


class NaNKey:
    """While it is entered, the key of a token of the last sequence in a layer is not finite."""

    def __init__(self, model, layer, token):
        self.module, self.token = model.model.layers[layer].self_attn.k_proj, token

    def __enter__(self):
        def poison(module, inputs, out):
            out[-1, self.token] = float("nan")
            return out

        self.hook = self.module.register_forward_hook(poison)

    def __exit__(self, *error):
        self.hook.remove()


def save_tiny_model(folder, family="llama"):
    """A model and its tokenizer, one token a character, for from_pretrained; returns the folder."""
    characters = sorted(set(map(chr, range(32, 127))) | {"\n", "\u2019"})
    vocabulary = {name: i for i, name in enumerate(["<pad>", "<s>", "<unk>", *characters])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = tiny_config(family)
    config.vocab_size = len(vocabulary)
    torch.manual_seed(5)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
