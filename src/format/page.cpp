// SPDX-License-Identifier: Apache-2.0
// Whole pages: which rows and channels make a group, padding, the f16 page.
#include <cmath>
#include <cstring>
#include <string>

#include "format/layout.h"
#include "innerkv/codec.h"
#include "innerkv/error.h"

namespace innerkv {
namespace {

/// A side of a page as groups: `outer` are tokens for K and channels for V.
template <class Visit>
void for_each_k_group(const PageFormat& format, Visit visit) {
    for (int channel = 0; channel < format.padded_dim(); channel += kGroupSize)
        for (int token = 0; token < kPageTokens; ++token)
            visit(channel / kBlockChannels, k_tile(token, channel), token % kTileRows, token,
                  channel);
}

template <class Visit>
void for_each_v_group(const PageFormat& format, Visit visit) {
    for (int channel = 0; channel < format.padded_dim(); ++channel)
        visit(channel / kBlockChannels, v_tile(channel), channel % kTileRows, channel);
}

std::byte* block_at(std::byte* side, Codec codec, int block) {
    return side + static_cast<std::size_t>(block) * codec.block_bytes();
}
const std::byte* block_at(const std::byte* side, Codec codec, int block) {
    return side + static_cast<std::size_t>(block) * codec.block_bytes();
}

void quantize_k(const PageFormat& format, const float* k, std::ptrdiff_t stride, std::byte* side) {
    for_each_k_group(format, [&](int block, int tile, int row, int token, int channel) {
        float values[kGroupSize] = {};
        for (int i = 0; i < kGroupSize && channel + i < format.head_dim; ++i)
            values[i] = k[token * stride + channel + i];
        store_group(format.k, block_at(side, format.k, block), tile, row,
                    quantize_group(format.k, values));
    });
}

void quantize_v(const PageFormat& format, const float* v, std::ptrdiff_t stride, std::byte* side) {
    for_each_v_group(format, [&](int block, int tile, int row, int channel) {
        float values[kGroupSize] = {};
        for (int token = 0; token < kPageTokens && channel < format.head_dim; ++token)
            values[token] = v[token * stride + channel];
        store_group(format.v, block_at(side, format.v, block), tile, row,
                    quantize_group(format.v, values));
    });
}

void dequantize_k(const PageFormat& format, const std::byte* side, float* k,
                  std::ptrdiff_t stride) {
    for_each_k_group(format, [&](int block, int tile, int row, int token, int channel) {
        float values[kGroupSize];
        dequantize_group(format.k, load_group(format.k, block_at(side, format.k, block), tile, row),
                         values);
        for (int i = 0; i < kGroupSize && channel + i < format.head_dim; ++i)
            k[token * stride + channel + i] = values[i];
    });
}

void dequantize_v(const PageFormat& format, const std::byte* side, float* v,
                  std::ptrdiff_t stride) {
    for_each_v_group(format, [&](int block, int tile, int row, int channel) {
        float values[kGroupSize];
        dequantize_group(format.v, load_group(format.v, block_at(side, format.v, block), tile, row),
                         values);
        for (int token = 0; token < kPageTokens && channel < format.head_dim; ++token)
            v[token * stride + channel] = values[token];
    });
}

void store_f16_rows(int head_dim, const float* rows, std::ptrdiff_t stride, std::byte* side) {
    for (int token = 0; token < kPageTokens; ++token)
        for (int channel = 0; channel < head_dim; ++channel) {
            const float value = rows[token * stride + channel];
            if (!(std::abs(value) <= 65504.0f))
                throw InvalidArgument("token " + std::to_string(token) + ", channel " +
                                      std::to_string(channel) + " is " + std::to_string(value) +
                                      "; only finite values up to 65504 can be stored");
            const std::uint16_t bits = f16_from_float(value);
            std::memcpy(side + 2 * (token * head_dim + channel), &bits, sizeof bits);
        }
}

void load_f16_rows(int head_dim, const std::byte* side, float* rows, std::ptrdiff_t stride) {
    for (int token = 0; token < kPageTokens; ++token)
        for (int channel = 0; channel < head_dim; ++channel) {
            std::uint16_t bits;
            std::memcpy(&bits, side + 2 * (token * head_dim + channel), sizeof bits);
            rows[token * stride + channel] = float_from_f16(bits);
        }
}

} // namespace

void quantize_page(const PageFormat& format, const float* k, std::ptrdiff_t k_stride,
                   const float* v, std::ptrdiff_t v_stride, std::byte* page) {
    format.validate();
    if (!format.quantized()) {
        store_f16_rows(format.head_dim, k, k_stride, page);
        store_f16_rows(format.head_dim, v, v_stride, page + format.v_offset());
        return;
    }
    quantize_k(format, k, k_stride, page);
    quantize_v(format, v, v_stride, page + format.v_offset());
}

void dequantize_page(const PageFormat& format, const std::byte* page, float* k,
                     std::ptrdiff_t k_stride, float* v, std::ptrdiff_t v_stride) {
    format.validate();
    if (!format.quantized()) {
        load_f16_rows(format.head_dim, page, k, k_stride);
        load_f16_rows(format.head_dim, page + format.v_offset(), v, v_stride);
        return;
    }
    dequantize_k(format, page, k, k_stride);
    dequantize_v(format, page + format.v_offset(), v, v_stride);
}

} // namespace innerkv
