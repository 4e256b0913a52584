// SPDX-License-Identifier: Apache-2.0
// What other caches make of rows of keys and values, from their definitions: rows go in, and come out as
// the cache would give them back. docs/rivals.md has the sources.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "innerkv/codec.h"

namespace innerkv::runner::simulated {

/// What an fp16 parameter gives back.
inline float rounded_to_f16(float value) { return float_from_f16(f16_from_float(value)); }

/// One side of one KV head.
class Codec {
public:
    Codec() = default;
    Codec(const Codec&) = delete;
    Codec& operator=(const Codec&) = delete;
    virtual ~Codec() = default;

    /// Throws InvalidArgument where rows of so many channels do not fit.
    virtual void check(int head_dim) const = 0;
    /// In place, finite rows of consecutive tokens, [tokens, head_dim]. Codecs along tokens want whole
    /// groups of 32 of them.
    virtual void round(std::span<float> rows, int head_dim) const = 0;
    /// Bits a value, scales and all else that is stored counted.
    virtual double bits(int head_dim) const = 0;
};

using CodecPtr = std::shared_ptr<const Codec>;

/// Blocks of 32 channels, as ggml defines them.
struct BlockType {
    std::string_view name;
    int bits;        ///< of a code
    bool asymmetric; ///< a minimum beside the scale
};

/// ggml's types that llama.cpp keeps caches in.
std::span<const BlockType> block_types();

CodecPtr block_codec(const BlockType& type);

/// `inner` on rows that a Hadamard matrix has rotated, in blocks of the largest power of two that divides
/// head_dim (llama.cpp's keys) or of 64 channels (its values). Head dimensions are multiples of 64.
CodecPtr rotated(CodecPtr inner, bool largest_blocks);

/// `inner` on rows whose halves are woven together: 0, d/2, 1, d/2 + 1, ... That is the order of key channels
/// in llama.cpp where its rope turns neighbours (Llama, Mistral); ours turns channels half a head apart.
CodecPtr interleaved(CodecPtr inner);

/// KIVI: asymmetric codes in groups of 32 tokens of a channel (keys) or 32 channels of a token (values).
CodecPtr kivi_keys(int bits);
CodecPtr kivi_values(int bits);

/// TurboQuant-like: the row's norm, its signs flipped at random, rotated, Lloyd-Max levels.
CodecPtr turbo_codec(int bits);

/// The 2^(bits-1) positive levels of the best quantizer of a standard normal variable, ascending; the
/// others are their negatives.
std::vector<double> normal_levels(int bits);

/// In place: the orthonormal Hadamard matrix on blocks of `block` channels, a power of two.
void hadamard(std::span<float> rows, int block);

} // namespace innerkv::runner::simulated
