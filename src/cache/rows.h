// SPDX-License-Identifier: Apache-2.0
// Rows of fp16 pages: storing a caller's rows, copying, and reading as fp32. One KV head at a time; a
// page here is K rows [32][head_dim] fp16, then V rows likewise (format.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "innerkv/cache.h"

namespace innerkv::paging {

enum class Side : std::uint8_t { k, v };

/// Throws InvalidArgument unless `tokens` rows of `heads` heads can be read with these strides. `side`
/// begins the message's subject: "K", "V" or "Q".
void check_rows(const Rows& rows, const char* side, int tokens, int heads, int head_dim);

/// A value that fp16 cannot hold.
struct BadValue {
    int token = 0; ///< of the rows
    int head = 0;
    int channel = 0;
    float value = 0.0f;
};

/// Stores rows first_token .. first_token + tokens - 1 of one head as fp16, from first_row of a page
/// on. Stops at the first value that is not finite or beyond fp16 and returns it.
std::optional<BadValue> store_rows(const Rows& rows, int head, int head_dim, int first_token,
                                   int tokens, Side side, std::byte* page, int first_row);

/// Adds the squares of rows first_token .. first_token + tokens - 1 of `heads` heads to `sums`, [head_dim],
/// token by token. Stops as store_rows does.
std::optional<BadValue> add_squares(const Rows& rows, int first_head, int heads, int head_dim,
                                    int first_token, int tokens, float* sums);

/// Copies the first `rows` rows of K and V.
void copy_rows(int head_dim, int rows, const std::byte* from, std::byte* to);

/// `count` elements as fp32.
void load_f16(const std::byte* from, int count, float* out);

/// One row as fp32.
void load_row(const std::byte* page, Side side, int head_dim, int row, float* out);

/// fp32 to fp16; values beyond fp16 saturate.
void store_row_saturated(const float* in, Side side, int head_dim, int row, std::byte* page);

} // namespace innerkv::paging
