// SPDX-License-Identifier: Apache-2.0
#include "cache/rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "format/clones.h"
#include "innerkv/codec.h"
#include "innerkv/error.h"
#include "transform/transform.h"

namespace innerkv::paging {
namespace {

constexpr std::uint16_t kExponentMask = 0x7C00; ///< all set: infinity or NaN

struct BFloat16 {
    std::uint16_t bits;
};
struct Half {
    std::uint16_t bits;
};

float to_float(float value) { return value; }
float to_float(BFloat16 value) { return std::bit_cast<float>(std::uint32_t{value.bits} << 16); }
float to_float(Half value) { return float_from_f16(value.bits); }

std::uint16_t to_f16(float value) { return f16_from_float(value); }
std::uint16_t to_f16(BFloat16 value) { return f16_from_float(to_float(value)); }
std::uint16_t to_f16(Half value) { return value.bits; }

std::size_t element_bytes(RowType type) { return type == RowType::f32 ? 4 : 2; }

std::size_t row_offset(Side side, int head_dim, int row) {
    const int index = side == Side::k ? row : kPageTokens + row;
    return sizeof(std::uint16_t) * static_cast<std::size_t>(index) *
           static_cast<std::size_t>(head_dim);
}

std::uint16_t* row_of(std::byte* page, Side side, int head_dim, int row) {
    return reinterpret_cast<std::uint16_t*>(page + row_offset(side, head_dim, row));
}

/// Returns the first channel that fp16 cannot hold, or head_dim.
template <typename Element>
int store_row(const Element* in, int head_dim, std::uint16_t* out) {
    unsigned overflow = 0;
    for (int c = 0; c < head_dim; ++c) {
        out[c] = to_f16(in[c]);
        overflow |= (out[c] & kExponentMask) == kExponentMask ? 1u : 0u;
    }
    if (overflow == 0) return head_dim;
    return static_cast<int>(
        std::find_if(out, out + head_dim,
                     [](std::uint16_t bits) { return (bits & kExponentMask) == kExponentMask; }) -
        out);
}

template <typename Element>
std::optional<BadValue> store_elements(const Rows& rows, int head, int head_dim, int first_token,
                                       int tokens, Side side, std::byte* page, int first_row) {
    const auto* data = static_cast<const Element*>(rows.data) + head * rows.head_stride;
    for (int t = 0; t < tokens; ++t) {
        const Element* in = data + (first_token + t) * rows.token_stride;
        const int channel = store_row(in, head_dim, row_of(page, side, head_dim, first_row + t));
        if (channel < head_dim)
            return BadValue{first_token + t, head, channel, to_float(in[channel])};
    }
    return std::nullopt;
}

template <typename Element>
std::optional<BadValue> add_squares_of(const Rows& rows, int first_head, int heads, int head_dim,
                                       int first_token, int tokens, float* sums) {
    const auto* data = static_cast<const Element*>(rows.data);
    for (int t = first_token; t < first_token + tokens; ++t) {
        for (int head = first_head; head < first_head + heads; ++head) {
            const Element* in = data + t * rows.token_stride + head * rows.head_stride;
            for (int c = 0; c < head_dim; ++c) {
                const float value = to_float(in[c]);
                // Written so that NaN fails.
                if (!(std::abs(value) <= kLargestF16)) return BadValue{t, head, c, value};
                sums[c] += value * value;
            }
        }
    }
    return std::nullopt;
}

void check_stride(const char* side, const char* name, std::ptrdiff_t stride, int head_dim) {
    if (stride >= head_dim) return;
    throw InvalidArgument(std::string("append: ") + name + " of " + side + " is " +
                          std::to_string(stride) +
                          "; rows of head_dim = " + std::to_string(head_dim) +
                          " elements must not overlap, so it must be at least that");
}

} // namespace

void check_rows(const Rows& rows, const char* side, int tokens, int heads, int head_dim) {
    if (tokens == 0) return;
    const std::string subject = std::string("append: ") + side + " rows ";
    if (rows.type != RowType::f32 && rows.type != RowType::f16 && rows.type != RowType::bf16)
        throw InvalidArgument(subject + "have an unknown type; supported are f32, f16 and bf16");
    if (!rows.data) throw InvalidArgument(subject + "have no data");
    if (reinterpret_cast<std::uintptr_t>(rows.data) % element_bytes(rows.type) != 0)
        throw InvalidArgument(subject + "are not aligned to their element type");
    if (tokens > 1) check_stride(side, "token_stride", rows.token_stride, head_dim);
    if (heads > 1) check_stride(side, "head_stride", rows.head_stride, head_dim);
}

INNERKV_CLONES
std::optional<BadValue> store_rows(const Rows& rows, int head, int head_dim, int first_token,
                                   int tokens, Side side, std::byte* page, int first_row) {
    switch (rows.type) { // not by a pointer: calls are compiled into each clone
    case RowType::f32:
        return store_elements<float>(rows, head, head_dim, first_token, tokens, side, page,
                                     first_row);
    case RowType::f16:
        return store_elements<Half>(rows, head, head_dim, first_token, tokens, side, page,
                                    first_row);
    case RowType::bf16:
        break;
    }
    return store_elements<BFloat16>(rows, head, head_dim, first_token, tokens, side, page,
                                    first_row);
}

std::optional<BadValue> add_squares(const Rows& rows, int first_head, int heads, int head_dim,
                                    int first_token, int tokens, float* sums) {
    const auto add = rows.type == RowType::f32   ? add_squares_of<float>
                     : rows.type == RowType::f16 ? add_squares_of<Half>
                                                 : add_squares_of<BFloat16>;
    return add(rows, first_head, heads, head_dim, first_token, tokens, sums);
}

void copy_rows(int head_dim, int rows, const std::byte* from, std::byte* to) {
    const std::size_t bytes = row_offset(Side::k, head_dim, rows);
    const std::size_t v = row_offset(Side::v, head_dim, 0);
    std::memcpy(to, from, bytes);
    std::memcpy(to + v, from + v, bytes);
}

INNERKV_CLONES
void load_f16(const std::byte* from, int count, float* out) {
    const auto* in = reinterpret_cast<const std::uint16_t*>(from);
    for (int i = 0; i < count; ++i) out[i] = float_from_f16(in[i]);
}

void load_row(const std::byte* page, Side side, int head_dim, int row, float* out) {
    load_f16(page + row_offset(side, head_dim, row), head_dim, out);
}

void store_row_saturated(const float* in, Side side, int head_dim, int row, std::byte* page) {
    std::uint16_t* out = row_of(page, side, head_dim, row);
    for (int c = 0; c < head_dim; ++c)
        out[c] = f16_from_float(std::clamp(in[c], -kLargestF16, kLargestF16));
}

} // namespace innerkv::paging
