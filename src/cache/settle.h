// SPDX-License-Identifier: Apache-2.0
// One page of one KV head from fp16 to quantized, and rows of it back. Transforms and codecs are called
// here and nowhere else in the cache.
#pragma once

#include <cstddef>
#include <span>

#include "innerkv/format.h"
#include "innerkv/view.h"

namespace innerkv::paging {

/// What a page of one KV head goes through: `centre`, fp16 [head_dim], stands for the transform's own
/// unless it is null.
struct PageTransform {
    KeyTransform transform;
    const std::byte* centre = nullptr;
};

/// Of one KV head's page: `transforms` as CacheState::transforms, `centres` those of all heads in the page's
/// epoch, or null.
PageTransform page_transform(const PageFormat& format, std::span<const KeyTransform> transforms,
                             const std::byte* centres, std::size_t head);

/// Quantizes the 32 tokens of an fp16 page.
void quantize_f16_page(const PageFormat& format, const PageTransform& given,
                       const std::byte* f16_page, std::byte* page);

/// Writes the first `rows` tokens of a quantized page to an fp16 page: dequantized, transformed back
/// and rounded to fp16. Rows behind them stay as they are.
void dequantize_to_f16_page(const PageFormat& format, const PageTransform& given,
                            const std::byte* page, int rows, std::byte* f16_page);

} // namespace innerkv::paging
