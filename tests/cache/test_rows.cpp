// SPDX-License-Identifier: Apache-2.0
#include "test_rows.h"

#include <algorithm>
#include <bit>

#include "innerkv/codec.h"

namespace innerkv::test {
namespace {

constexpr int kPadding = 3; ///< elements between rows

struct Channel {
    float offset;
    float scale;
};

/// Some channels are large, some are shifted, some are zero.
Channel channel_of(int side, int head, int channel) {
    Random random(static_cast<std::uint64_t>(1 + side + 2 * head + 64 * channel));
    if (random.one_in(40)) return {0.0f, 0.0f};
    const float scale = random.one_in(8) ? 12.0f : 0.5f + std::abs(random.unit());
    const float offset = random.one_in(3) ? 4.0f * random.unit() : 0.0f;
    return {offset, scale};
}

} // namespace

std::uint64_t Random::next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 2685821657736338717u;
}

int Random::between(int low, int high) {
    return low + static_cast<int>((next() >> 32) % static_cast<std::uint64_t>(high - low + 1));
}

float Random::unit() {
    return static_cast<float>(static_cast<std::int32_t>(next() >> 32)) * 0x1p-31f;
}

TestRows::TestRows(Random& random, int tokens, int kv_heads, int head_dim, int side, RowType type,
                   Order order)
    : tokens_(tokens), kv_heads_(kv_heads), head_dim_(head_dim), type_(type) {
    const std::ptrdiff_t row = head_dim + kPadding;
    token_stride_ = order == Order::token_major ? row * kv_heads : row;
    head_stride_ = order == Order::token_major ? row : row * std::max(1, tokens);
    const auto elements = static_cast<std::size_t>(row) * static_cast<std::size_t>(tokens) *
                          static_cast<std::size_t>(kv_heads);
    if (type == RowType::f32) f32_.resize(elements);
    if (type != RowType::f32) half_.resize(elements, 0x7FFF); // NaN between rows
    expected_.resize(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(kv_heads) *
                     static_cast<std::size_t>(head_dim));
    for (int head = 0; head < kv_heads; ++head) {
        std::vector<Channel> channels;
        for (int c = 0; c < head_dim; ++c) channels.push_back(channel_of(side, head, c));
        for (int token = 0; token < tokens; ++token) {
            const std::size_t at = place(token, head);
            auto* out = expected_.data() + (expected(token, head) - expected_.data());
            for (int c = 0; c < head_dim; ++c) {
                const auto& [offset, scale] = channels[static_cast<std::size_t>(c)];
                const float value = offset + scale * random.unit();
                const std::size_t i = at + static_cast<std::size_t>(c);
                if (type == RowType::f32) f32_[i] = value;
                if (type == RowType::f16) half_[i] = f16_from_float(value);
                if (type == RowType::bf16)
                    half_[i] =
                        static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
                const float held =
                    type == RowType::bf16
                        ? std::bit_cast<float>(static_cast<std::uint32_t>(half_[i]) << 16)
                        : value;
                out[c] = f16_from_float(held);
            }
        }
    }
}

std::size_t TestRows::place(int token, int head) const {
    return static_cast<std::size_t>(token * token_stride_ + head * head_stride_);
}

Rows TestRows::rows() const { return slice(0); }

Rows TestRows::slice(int first) const {
    const std::size_t at = place(first, 0);
    const void* data = type_ == RowType::f32 ? static_cast<const void*>(f32_.data() + at)
                                             : static_cast<const void*>(half_.data() + at);
    return {data, type_, token_stride_, head_stride_};
}

const std::uint16_t* TestRows::expected(int token, int head) const {
    return expected_.data() +
           (static_cast<std::size_t>(token) * static_cast<std::size_t>(kv_heads_) +
            static_cast<std::size_t>(head)) *
               static_cast<std::size_t>(head_dim_);
}

void TestRows::poke(int token, int head, int channel, float value) {
    f32_[place(token, head) + static_cast<std::size_t>(channel)] = value;
    expected_[static_cast<std::size_t>(expected(token, head) - expected_.data() + channel)] =
        f16_from_float(value);
}

} // namespace innerkv::test
