// SPDX-License-Identifier: Apache-2.0
#include "tensor.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "innerkv/codec.h"
#include "innerkv/error.h"

namespace innerkv::python {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 24;

std::size_t bytes_of(RowType type) { return type == RowType::f32 ? 4 : 2; }

float float_from_bf16(std::uint16_t bits) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

std::uint16_t bf16_from_float(float value) {
    if (std::isnan(value)) return 0x7fc0;
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void widen_row(RowType type, const std::byte* from, int size, float* to) {
    if (type == RowType::f32) {
        std::memcpy(to, from, static_cast<std::size_t>(size) * sizeof(float));
        return;
    }
    const auto* halves = reinterpret_cast<const std::uint16_t*>(from);
    if (type == RowType::f16)
        for (int i = 0; i < size; ++i) to[i] = float_from_f16(halves[i]);
    else
        for (int i = 0; i < size; ++i) to[i] = float_from_bf16(halves[i]);
}

void narrow_row(RowType type, const float* from, int size, std::byte* to) {
    if (type == RowType::f32) {
        std::memcpy(to, from, static_cast<std::size_t>(size) * sizeof(float));
        return;
    }
    auto* halves = reinterpret_cast<std::uint16_t*>(to);
    if (type == RowType::f16)
        for (int i = 0; i < size; ++i) halves[i] = f16_from_float(from[i]);
    else
        for (int i = 0; i < size; ++i) halves[i] = bf16_from_float(from[i]);
}

/// Calls visit(row's first byte) for each token and head in order.
template <class Visit>
void for_each_row(const Tensor& tensor, std::int64_t sequence, std::int64_t first,
                  std::int64_t tokens, Visit visit) {
    const auto head_bytes = tensor.strides[2] * static_cast<std::ptrdiff_t>(bytes_of(tensor.type));
    for (std::int64_t token = first; token < first + tokens; ++token) {
        std::byte* row = tensor.row(sequence, token);
        for (int head = 0; head < tensor.heads(); ++head) visit(row + head * head_bytes);
    }
}

} // namespace

std::byte* Tensor::row(std::int64_t sequence, std::int64_t token) const {
    return data + (sequence * strides[0] + token * strides[1]) *
                      static_cast<std::ptrdiff_t>(bytes_of(type));
}

Rows Tensor::rows(std::int64_t sequence, std::int64_t first_token) const {
    return {row(sequence, first_token), type, strides[1], strides[2]};
}

std::string shape_of(const Tensor& tensor) {
    std::string text;
    for (const std::int64_t size : tensor.shape)
        text += (text.empty() ? "[" : ", ") + std::to_string(size);
    return text + "]";
}

void check_tensor(const char* name, const Tensor& tensor, std::size_t sequences, int head_dim) {
    const auto [n, tokens, heads, dim] = tensor.shape;
    if (n == static_cast<std::int64_t>(sequences) && dim == head_dim && tokens >= 0 &&
        tokens <= kMost && heads >= 1 && heads <= kMost)
        return;
    throw InvalidArgument(std::string(name) + " has the shape " + shape_of(tensor) +
                          "; it must be [sequences, tokens, heads, head_dim] with " +
                          std::to_string(sequences) + " sequences and head_dim " +
                          std::to_string(head_dim));
}

void widen(const Tensor& from, std::int64_t sequence, std::int64_t first, std::int64_t tokens,
           float* to) {
    for_each_row(from, sequence, first, tokens, [&](const std::byte* row) {
        widen_row(from.type, row, from.head_dim(), to);
        to += from.head_dim();
    });
}

void narrow(const float* from, const Tensor& to, std::int64_t sequence, std::int64_t first,
            std::int64_t tokens) {
    for_each_row(to, sequence, first, tokens, [&](std::byte* row) {
        narrow_row(to.type, from, to.head_dim(), row);
        from += to.head_dim();
    });
}

void fill_zeros(const Tensor& to, std::int64_t sequence, std::int64_t first, std::int64_t tokens) {
    const std::size_t bytes = static_cast<std::size_t>(to.head_dim()) * bytes_of(to.type);
    for_each_row(to, sequence, first, tokens, [&](std::byte* row) { std::memset(row, 0, bytes); });
}

} // namespace innerkv::python
