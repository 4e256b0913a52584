// SPDX-License-Identifier: Apache-2.0
#include "test_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "innerkv/codec.h"

namespace innerkv::test {
namespace {

constexpr int kPadding = 3; ///< elements between rows

constexpr int kSides = 3; ///< K, V, queries
constexpr int kHeads = 8;
constexpr int kChannels = 256;

/// Some channels are large, some are shifted, some are zero. [side, head, channel].
std::vector<Channel> make_channels() {
    std::vector<Channel> channels;
    for (int i = 0; i < kSides * kHeads * kChannels; ++i) {
        Random random(static_cast<std::uint64_t>(i + 1));
        Channel channel{0.0f, 0.0f};
        if (!random.one_in(40)) {
            channel.scale = random.one_in(8) ? 12.0f : 0.5f + std::abs(random.unit());
            channel.offset = random.one_in(3) ? 4.0f * random.unit() : 0.0f;
        }
        channels.push_back(channel);
    }
    return channels;
}

const Channel* channels_of(int side, int head) {
    static const std::vector<Channel> channels = make_channels();
    return channels.data() + (side * kHeads + head % kHeads) * kChannels;
}

std::uint16_t bf16_from_float(float value) {
    return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
}

float float_from_bf16(std::uint16_t bits) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
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

TestRows::TestRows(Random& random, int tokens, int heads, int head_dim, int side, RowType type,
                   Order order)
    : tokens_(tokens), heads_(heads), head_dim_(head_dim), type_(type) {
    const std::ptrdiff_t row = head_dim + kPadding;
    token_stride_ = order == Order::token_major ? row * heads : row;
    head_stride_ = order == Order::token_major ? row : row * std::max(1, tokens);
    const auto elements = static_cast<std::size_t>(row) * static_cast<std::size_t>(tokens) *
                          static_cast<std::size_t>(heads);
    if (type == RowType::f32) f32_.resize(elements);
    if (type != RowType::f32) half_.resize(elements, 0x7FFF); // NaN between rows
    expected_.resize(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(heads) *
                     static_cast<std::size_t>(head_dim));
    for (int head = 0; head < heads; ++head)
        for (int token = 0; token < tokens; ++token)
            fill_row(random, token, head, channels_of(side, head));
}

void TestRows::fill_row(Random& random, int token, int head, const Channel* channels) {
    std::uint16_t* out = expected_row(token, head);
    const std::size_t at = place(token, head);
    for (int c = 0; c < head_dim_; ++c) {
        const float value = channels[c].offset + channels[c].scale * random.unit();
        const std::size_t i = at + static_cast<std::size_t>(c);
        out[c] = f16_from_float(value);
        if (type_ == RowType::f32) f32_[i] = value;
        if (type_ == RowType::f16) half_[i] = out[c];
        if (type_ == RowType::bf16) {
            half_[i] = bf16_from_float(value);
            out[c] = f16_from_float(float_from_bf16(half_[i]));
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

std::uint16_t* TestRows::expected_row(int token, int head) {
    return expected_.data() + static_cast<std::ptrdiff_t>(token * heads_ + head) * head_dim_;
}

float TestRows::value(int token, int head, int channel) const {
    const std::size_t at = place(token, head) + static_cast<std::size_t>(channel);
    return type_ == RowType::f32   ? f32_[at]
           : type_ == RowType::f16 ? float_from_f16(half_[at])
                                   : float_from_bf16(half_[at]);
}

void TestRows::poke(int token, int head, int channel, float value) {
    f32_[place(token, head) + static_cast<std::size_t>(channel)] = value;
    expected_row(token, head)[channel] = f16_from_float(value);
}

} // namespace innerkv::test
