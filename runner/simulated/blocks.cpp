// SPDX-License-Identifier: Apache-2.0
// llama.cpp's cache types and its rotation of keys and values.
#include <algorithm>
#include <cmath>
#include <string>

#include "codecs.h"
#include "innerkv/codec.h"
#include "innerkv/error.h"

namespace innerkv::runner::simulated {
namespace {

constexpr int kBlock = 32;
constexpr int kSmallestRotation = 64;

/// 0 where the scale is too small for it: the stored scale is 0 then, and so is every value.
float inverse(float scale) {
    const float reciprocal = 1.0f / scale;
    return std::isfinite(reciprocal) ? reciprocal : 0.0f;
}

/// The first of the elements whose magnitude is largest.
float extreme(std::span<const float> block) {
    return *std::max_element(block.begin(), block.end(),
                             [](float a, float b) { return std::abs(a) < std::abs(b); });
}

/// q8_0: levels -127 .. 127.
void round_8(std::span<float> block) {
    const float scale = std::abs(extreme(block)) / 127.0f;
    const float reciprocal = inverse(scale);
    const float stored = rounded_to_f16(scale);
    for (float& value : block) {
        value = std::round(value * reciprocal) * stored;
    }
}

/// q4_0, q5_0: the element of largest magnitude takes the lowest level, the scale carries its sign.
void round_symmetric(std::span<float> block, int bits) {
    const int lowest = 1 << (bits - 1);
    const float scale = extreme(block) / static_cast<float>(-lowest);
    const float reciprocal = inverse(scale);
    const float stored = rounded_to_f16(scale);
    const float offset = static_cast<float>(lowest) + 0.5f;
    for (float& value : block) {
        const int code = std::min(static_cast<int>(value * reciprocal + offset), 2 * lowest - 1);
        value = static_cast<float>(code - lowest) * stored;
    }
}

/// q4_1, q5_1.
void round_asymmetric(std::span<float> block, int bits) {
    const int highest = (1 << bits) - 1;
    const auto [least, most] = std::minmax_element(block.begin(), block.end());
    const float minimum = *least;
    const float scale = (*most - minimum) / static_cast<float>(highest);
    const float reciprocal = inverse(scale);
    const float stored = rounded_to_f16(scale);
    const float stored_minimum = rounded_to_f16(minimum);
    for (float& value : block) {
        const float rounded = std::floor((value - minimum) * reciprocal + 0.5f);
        const int code = std::min(static_cast<int>(rounded), highest);
        value = static_cast<float>(code) * stored + stored_minimum;
    }
}

class Blocks final : public Codec {
public:
    explicit Blocks(const BlockType& type) : type_(type) {}

    void check(int head_dim) const override {
        if (head_dim % kBlock != 0) {
            throw InvalidArgument(std::string(type_.name) + " has blocks of " +
                                  std::to_string(kBlock) + " channels; a head dimension of " +
                                  std::to_string(head_dim) + " is not a multiple of that");
        }
    }

    void round(std::span<float> rows, int /*head_dim*/) const override {
        for (std::size_t first = 0; first < rows.size(); first += kBlock) {
            const std::span<float> block = rows.subspan(first, kBlock);
            if (type_.asymmetric) {
                round_asymmetric(block, type_.bits);
            } else if (type_.bits == 8) {
                round_8(block);
            } else {
                round_symmetric(block, type_.bits);
            }
        }
    }

    double bits(int /*head_dim*/) const override {
        return type_.bits + (type_.asymmetric ? 32.0 : 16.0) / kBlock;
    }

private:
    BlockType type_;
};

class Rotated final : public Codec {
public:
    Rotated(CodecPtr inner, bool largest_blocks)
        : inner_(std::move(inner)), largest_blocks_(largest_blocks) {}

    void check(int head_dim) const override {
        inner_->check(head_dim);
        if (head_dim % kSmallestRotation != 0) {
            throw InvalidArgument("llama.cpp rotates head dimensions that are multiples of " +
                                  std::to_string(kSmallestRotation) + ", not " +
                                  std::to_string(head_dim) + "; name the type without +rot");
        }
    }

    void round(std::span<float> rows, int head_dim) const override {
        const int block = largest_blocks_ ? head_dim & -head_dim : kSmallestRotation;
        hadamard(rows, block);
        inner_->round(rows, head_dim);
        hadamard(rows, block);
    }

    double bits(int head_dim) const override { return inner_->bits(head_dim); }

private:
    CodecPtr inner_;
    bool largest_blocks_;
};

class Interleaved final : public Codec {
public:
    explicit Interleaved(CodecPtr inner) : inner_(std::move(inner)) {}

    void check(int head_dim) const override { inner_->check(head_dim); }

    void round(std::span<float> rows, int head_dim) const override {
        const auto channels = static_cast<std::size_t>(head_dim);
        const std::size_t half = channels / 2;
        std::vector<float> woven(channels);
        for (std::size_t first = 0; first < rows.size(); first += channels) {
            const std::span<float> row = rows.subspan(first, channels);
            for (std::size_t i = 0; i < half; ++i) {
                woven[2 * i] = row[i];
                woven[2 * i + 1] = row[half + i];
            }
            inner_->round(woven, head_dim);
            for (std::size_t i = 0; i < half; ++i) {
                row[i] = woven[2 * i];
                row[half + i] = woven[2 * i + 1];
            }
        }
    }

    double bits(int head_dim) const override { return inner_->bits(head_dim); }

private:
    CodecPtr inner_;
};

} // namespace

std::span<const BlockType> block_types() {
    static constexpr BlockType kTypes[] = {{"q8_0", 8, false},
                                           {"q5_1", 5, true},
                                           {"q5_0", 5, false},
                                           {"q4_1", 4, true},
                                           {"q4_0", 4, false}};
    return kTypes;
}

CodecPtr block_codec(const BlockType& type) { return std::make_shared<Blocks>(type); }

CodecPtr rotated(CodecPtr inner, bool largest_blocks) {
    return std::make_shared<Rotated>(std::move(inner), largest_blocks);
}

CodecPtr interleaved(CodecPtr inner) { return std::make_shared<Interleaved>(std::move(inner)); }

void hadamard(std::span<float> rows, int block) {
    const auto size = static_cast<std::size_t>(block);
    const float norm = 1.0f / std::sqrt(static_cast<float>(block));
    for (std::size_t first = 0; first < rows.size(); first += size) {
        const std::span<float> row = rows.subspan(first, size);
        for (std::size_t half = 1; half < size; half *= 2) {
            for (std::size_t i = 0; i < size; ++i) {
                if ((i & half) == 0) {
                    const float a = row[i];
                    const float b = row[i + half];
                    row[i] = a + b;
                    row[i + half] = a - b;
                }
            }
        }
        for (float& value : row) {
            value *= norm;
        }
    }
}

} // namespace innerkv::runner::simulated
