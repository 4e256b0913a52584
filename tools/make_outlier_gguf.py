#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Gives a model's keys outlier channels, as some models have by nature, without changing its function.

    tools/make_outlier_gguf.py MODEL.gguf OUT.gguf --factor 32 --pairs 2

In every layer and KV head a few RoPE pairs of channels are drawn. Keys get both channels of a pair times
the factor, the queries that meet them get them divided by it: every product q . k stays. A pair's two
channels are scaled alike, so the rotation commutes with it.

Where a model norms its queries and keys (Qwen 3, Gemma 3), the norms' weights are scaled, which all heads of a
layer share. Elsewhere rows of the projections are, and the two matrices (and their biases) are stored as
F32: quantized blocks could not hold the scaled rows exactly. --factor 1 stores the same tensors so,
unscaled: the model to compare with. With --f32 all tensors are stored as F32: of such a model no product is
rounded to 8 bits. A factor that is a power of two changes no product's rounding, unless
keys leave fp16's range (65504): the cache refuses them while the model runs, with layer and channel.

Needs the gguf package (PYTHONPATH) and numpy, as tools/make_random_gguf.py.
"""

import argparse
import os
import sys

import gguf
import numpy as np

F32 = gguf.GGMLQuantizationType.F32
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
NEIGHBOURS = ("llama",)  # rope pairs channels 2i and 2i + 1; elsewhere i and i + dims / 2


class Shape:
    """What the metadata say of heads."""

    def __init__(self, reader):
        self.reader = reader
        self.architecture = reader.fields["general.architecture"].contents()
        if self.architecture not in ARCHITECTURES:
            sys.exit(f"architecture '{self.architecture}' is not supported; supported are "
                     f"{', '.join(ARCHITECTURES)}")
        self.layers = self.number("block_count")
        self.q_heads = self.number("attention.head_count")
        self.kv_heads = self.number("attention.head_count_kv", self.q_heads)
        self.head_dim = self.number("attention.key_length",
                                    self.number("embedding_length") // self.q_heads)
        self.rope_dims = self.number("rope.dimension_count", self.head_dim)

    def number(self, name, otherwise=None):
        field = self.reader.fields.get(f"{self.architecture}.{name}")
        value = field.contents() if field else otherwise
        if not isinstance(value, int):
            sys.exit(f"metadata {self.architecture}.{name} is not one number")
        return value

    def channels(self, pair):
        """Both channels of a RoPE pair, as rows of the file's matrices have them."""
        if self.architecture in NEIGHBOURS:
            return [2 * pair, 2 * pair + 1]
        return [pair, pair + self.rope_dims // 2]


def draw(shape, random, pairs, factor):
    """Key scales of one head: [head_dim]."""
    scales = np.ones(shape.head_dim, dtype=np.float32)
    for pair in random.choice(shape.rope_dims // 2, pairs, replace=False):
        scales[shape.channels(int(pair))] = factor
    return scales


def layer_scales(shape, names, layer, random, pairs, factor):
    """Factors of one layer's tensors: name -> [rows of the matrix, or elements of the vector]."""
    prefix = f"blk.{layer}.attn_"
    if prefix + "k_norm.weight" in names:
        scales = draw(shape, random, pairs, factor)
        return {prefix + "k_norm.weight": scales, prefix + "q_norm.weight": 1 / scales}
    heads = [draw(shape, random, pairs, factor) for _ in range(shape.kv_heads)]
    group = shape.q_heads // shape.kv_heads
    q = 1 / np.concatenate([scales for scales in heads for _ in range(group)])
    k = np.concatenate(heads)
    rows = {"q": q, "k": k}
    if prefix + "qkv.weight" in names:
        rows = {"qkv": np.concatenate([q, k, np.ones_like(k)])}
    return {f"{prefix}{part}.{kind}": factors for part, factors in rows.items()
            for kind in ("weight", "bias") if f"{prefix}{part}.{kind}" in names}


def copy_metadata(reader, writer):
    for field in reader.fields.values():
        # the writer has its own of these
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(field.name, field.contents(), field.types[0],
                             field.types[-1] if array else None)


def write_model(reader, shape, path, arguments):
    random = np.random.default_rng(arguments.seed)
    names = {tensor.name for tensor in reader.tensors}
    scales = {}
    for layer in range(shape.layers):
        scales |= layer_scales(shape, names, layer, random, arguments.pairs, arguments.factor)
    writer = gguf.GGUFWriter(path, shape.architecture)
    copy_metadata(reader, writer)
    for tensor in reader.tensors:
        if tensor.name not in scales and not arguments.f32:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in scales:
            values = values * scales[tensor.name].reshape((-1,) + (1,) * (values.ndim - 1))
        writer.add_tensor(tensor.name, values.astype(np.float32), raw_dtype=F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument("--factor", type=float, default=32.0, help="1 to 1024 (default 32)")
    parser.add_argument("--pairs", type=int, default=2, metavar="N",
                        help="RoPE pairs that are scaled, per layer and KV head (default 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="S",
                        help="draws the pairs (default 0)")
    parser.add_argument("--f32", action="store_true", help="all tensors as F32")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    if not 1 <= arguments.factor <= 1024:
        sys.exit(f"--factor {arguments.factor} is not a number from 1 to 1024")
    if not os.path.isfile(arguments.model):
        sys.exit(f"{arguments.model} is not a file")
    if os.path.exists(arguments.out) and os.path.samefile(arguments.model, arguments.out):
        sys.exit("MODEL and OUT are the same file")
    try:
        reader = gguf.GGUFReader(arguments.model)
    except ValueError as error:
        sys.exit(f"{arguments.model}: {error}")
    shape = Shape(reader)
    if not 1 <= arguments.pairs <= shape.rope_dims // 2:
        sys.exit(f"--pairs {arguments.pairs} is not a whole number from 1 to "
                 f"{shape.rope_dims // 2}, the pairs of a head")
    try:
        write_model(reader, shape, arguments.out + ".part", arguments)
        os.replace(arguments.out + ".part", arguments.out)
    except OSError as error:
        sys.exit(f"cannot write {arguments.out}: {error.strerror}")


if __name__ == "__main__":
    main()
