#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes small GGUF models with random weights, for tests that compare graphs.

    tools/make_random_gguf.py FOLDER [NAME...]

Every model is the same for the same name on every machine. Needs the gguf package (PYTHONPATH) and
numpy. Without names: all of them.
"""

import os
import sys
import zlib
from dataclasses import dataclass

import gguf
import numpy as np

Type = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class Model:
    architecture: str
    head_dim: int
    q_heads: int
    kv_heads: int
    type: Type = Type.F32
    stored: Type = None  # another type for the same values (of NAME, called NAME-as-f32)
    layers: int = 3
    embedding_dim: int = 0  # 0: q_heads * head_dim
    ffn_dim: int = 512
    tied: bool = True
    biases: bool = False  # of q, k and v
    extra_biases: bool = False  # of attention's output, the FFN and the output
    fused_qkv: bool = False
    rope_factors: bool = False
    rope_scaling: str = ""  # linear or yarn, by 4
    local_rope_base: float = 0.0  # of layers with a window
    window: int = 0
    window_list: bool = False  # the pattern as one boolean a layer
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    sentence_piece: bool = False  # instead of BPE; with a chat template that nobody knows
    context: int = 1024

    @property
    def width(self):
        return self.embedding_dim or self.q_heads * self.head_dim


MODELS = {
    "llama": Model("llama", 64, 6, 2),
    "llama-f16": Model("llama", 64, 4, 4, Type.F16, tied=False),
    "llama-bf16": Model("llama", 128, 4, 1, Type.BF16),
    "llama-q8_0": Model("llama", 64, 4, 2, Type.Q8_0),
    "llama-q4_0": Model("llama", 64, 4, 2, Type.Q4_0, tied=False),
    "llama-q4_1": Model("llama", 64, 4, 2, Type.Q4_1),
    "llama-q4_1-as-f32": Model("llama", 64, 4, 2, Type.Q4_1, stored=Type.F32),
    "llama-q5_0": Model("llama", 64, 4, 2, Type.Q5_0),
    "llama-head80": Model("llama", 80, 4, 2),
    "llama-head96": Model("llama", 96, 4, 4, tied=False),
    "llama-factors": Model("llama", 128, 4, 2, rope_factors=True, tied=False),
    "llama-biases": Model("llama", 64, 4, 2, biases=True, extra_biases=True),
    "llama-fused": Model("llama", 64, 4, 2, fused_qkv=True, biases=True),
    "llama-linear": Model("llama", 64, 4, 2, rope_scaling="linear"),
    "llama-yarn": Model("llama", 64, 4, 2, rope_scaling="yarn"),
    "llama-long": Model("llama", 64, 4, 2, Type.Q8_0, context=8192),
    "llama-spm": Model("llama", 64, 4, 2, Type.Q8_0, sentence_piece=True),
    "mistral": Model("llama", 128, 8, 2, embedding_dim=512, tied=False),
    "qwen2": Model("qwen2", 64, 4, 2, biases=True),
    "qwen2-q8_0": Model("qwen2", 128, 2, 1, Type.Q8_0, biases=True, tied=False),
    "qwen2-output-bias": Model("qwen2", 64, 7, 1, biases=True, extra_biases=True, tied=False),
    "qwen3": Model("qwen3", 128, 4, 2, embedding_dim=256),
    "qwen3-q4_0": Model("qwen3", 128, 4, 1, Type.Q4_0, embedding_dim=256, tied=False),
    "qwen3-yarn": Model("qwen3", 64, 4, 2, rope_scaling="yarn"),
    "gemma2": Model("gemma2", 128, 4, 2, embedding_dim=256, window=48, attention_soft_cap=5.0,
                    logit_soft_cap=8.0),
    "gemma3": Model("gemma3", 256, 4, 1, embedding_dim=320, layers=7, window=48),
    "gemma3-caps": Model("gemma3", 64, 4, 2, layers=7, window=33, logit_soft_cap=6.0, tied=False),
    "gemma3-list": Model("gemma3", 64, 4, 2, Type.F16, layers=4, window=64, window_list=True),
    "gemma3-linear": Model("gemma3", 64, 4, 2, layers=7, window=48, rope_scaling="linear"),
    "gemma3-bases": Model("gemma3", 64, 4, 2, layers=7, window=48, local_rope_base=300.0),
    "gemma3-no-window": Model("gemma3", 64, 4, 2, rope_scaling="linear"),
}

VOCABULARY = 288


def byte_characters():
    """GPT-2's printable stand-ins for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {b: chr(b) for b in printable}
    table.update({b: chr(256 + i) for i, b in enumerate(others)})
    return [table[b] for b in range(256)]


def add_sentence_piece(writer):
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    words = ["\u2581", "t", "h", "e", "i", "n", "r", "th", "he", "in", "er", "the", "\u2581the"]
    words += [chr(letter) for letter in range(ord("A"), ord("Z") + 1)]
    tokens += words[:VOCABULARY - len(tokens)]
    types += [gguf.TokenType.NORMAL] * (VOCABULARY - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(VOCABULARY)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ 'an unknown template' }}")


def add_byte_pairs(writer):
    tokens = byte_characters() + ["th", "he", "in", "er"]
    types = [gguf.TokenType.NORMAL] * len(tokens)
    tokens += ["<|start|>", "<|end|>"]
    types += [gguf.TokenType.CONTROL] * 2
    start = len(tokens) - 2
    while len(tokens) < VOCABULARY:
        tokens.append(f"<|unused{len(tokens)}|>")
        types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["t h", "h e", "i n", "e r"])
    writer.add_bos_token_id(start)
    writer.add_eos_token_id(start + 1)
    writer.add_add_bos_token(True)


def add_metadata(writer, model):
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.ffn_dim)
    writer.add_head_count(model.q_heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    if model.local_rope_base:
        writer.add_rope_freq_base_swa(model.local_rope_base)
    if model.rope_scaling:
        kind = gguf.RopeScalingType(model.rope_scaling)
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(model.context // 4)
    if model.window:
        writer.add_sliding_window(model.window)
    if model.window_list:
        pattern = [layer % 2 == 0 for layer in range(model.layers)]
        writer.add_sliding_window_pattern(pattern)
    if model.attention_soft_cap:
        writer.add_attn_logit_softcapping(model.attention_soft_cap)
    if model.logit_soft_cap:
        writer.add_final_logit_softcapping(model.logit_soft_cap)


class Tensors:
    """Random tensors, in the model's weight type where they are matrices."""

    def __init__(self, writer, model, seed):
        self.writer = writer
        self.type = model.type
        self.stored = model.stored or model.type
        self.random = np.random.default_rng(seed)

    def matrix(self, name, rows, columns, scale=1.0):
        values = self.random.standard_normal((rows, columns), dtype=np.float32)
        self.add(name, values * np.float32(scale / np.sqrt(columns)))

    def add(self, name, values):
        if self.stored != self.type:
            values = gguf.quants.dequantize(gguf.quants.quantize(values, self.type), self.type)
        if self.stored in (Type.F32, Type.F16):
            dtype = np.float32 if self.stored == Type.F32 else np.float16
            self.writer.add_tensor(name, values.astype(dtype))
        else:
            data = gguf.quants.quantize(values, self.stored)
            self.writer.add_tensor(name, data, raw_dtype=self.stored)

    def vector(self, name, size, mean, deviation):
        values = self.random.standard_normal(size, dtype=np.float32) * np.float32(deviation)
        self.writer.add_tensor(name, values + np.float32(mean))


def add_attention(tensors, model, prefix):
    dims = {"q": model.q_heads * model.head_dim, "k": model.kv_heads * model.head_dim,
            "v": model.kv_heads * model.head_dim}
    if model.fused_qkv:
        dims = {"qkv": sum(dims.values())}
    for name, dim in dims.items():
        tensors.matrix(f"{prefix}attn_{name}.weight", dim, model.width, 1.5)
        if model.biases:
            tensors.vector(f"{prefix}attn_{name}.bias", dim, 0.0, 0.5)
    if model.architecture in ("qwen3", "gemma3"):
        tensors.vector(f"{prefix}attn_q_norm.weight", model.head_dim, 1.0, 0.2)
        tensors.vector(f"{prefix}attn_k_norm.weight", model.head_dim, 1.0, 0.2)
    tensors.matrix(f"{prefix}attn_output.weight", model.width, model.q_heads * model.head_dim)
    if model.extra_biases and model.architecture == "llama":
        tensors.vector(f"{prefix}attn_output.bias", model.width, 0.0, 0.2)


def add_feed_forward(tensors, model, prefix):
    biased = model.extra_biases and model.architecture == "llama"
    for name, rows, columns in (("gate", model.ffn_dim, model.width),
                                ("up", model.ffn_dim, model.width),
                                ("down", model.width, model.ffn_dim)):
        tensors.matrix(f"{prefix}ffn_{name}.weight", rows, columns)
        if biased:
            tensors.vector(f"{prefix}ffn_{name}.bias", rows, 0.0, 0.2)


def add_layer(tensors, model, prefix):
    norms = ["attn_norm", "ffn_norm"]
    if model.architecture.startswith("gemma"):
        norms += ["post_attention_norm", "post_ffw_norm"]
    for norm in norms:
        tensors.vector(f"{prefix}{norm}.weight", model.width, 1.0, 0.2)
    add_attention(tensors, model, prefix)
    add_feed_forward(tensors, model, prefix)


def write_model(path, name, model):
    writer = gguf.GGUFWriter(path, model.architecture)
    writer.add_name(f"random {name}")
    add_metadata(writer, model)
    (add_sentence_piece if model.sentence_piece else add_byte_pairs)(writer)
    tensors = Tensors(writer, model, zlib.crc32(name.removesuffix("-as-f32").encode()))
    # Embeddings are small beside what layers add, and logits spread by about 2, tied or not: then a
    # fault anywhere shows in the logits.
    embedding = 0.3 / (np.sqrt(model.width) if model.architecture.startswith("gemma") else 1.0)
    tensors.matrix("token_embd.weight", VOCABULARY, model.width,
                   embedding * np.sqrt(model.width))
    gain = 2.0 / (embedding * np.sqrt(model.width)) if model.tied else 1.0
    tensors.vector("output_norm.weight", model.width, gain, 0.2 * gain)
    if not model.tied:
        tensors.matrix("output.weight", VOCABULARY, model.width, 2.0)
    if model.extra_biases and model.architecture == "qwen2":
        tensors.vector("output.bias", VOCABULARY, 0.0, 1.0)
    if model.rope_factors:
        factors = np.linspace(1.0, 8.0, model.head_dim // 2, dtype=np.float32)
        writer.add_tensor("rope_freqs.weight", factors)
    for layer in range(model.layers):
        add_layer(tensors, model, f"blk.{layer}.")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder, names = sys.argv[1], sys.argv[2:] or list(MODELS)
    os.makedirs(folder, exist_ok=True)
    for name in names:
        if name not in MODELS:
            sys.exit(f"no model {name}; there are {', '.join(MODELS)}")
        path = os.path.join(folder, f"{name}.gguf")
        write_model(path + ".part", name, MODELS[name])
        os.replace(path + ".part", path)


if __name__ == "__main__":
    main()
