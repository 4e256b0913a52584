// SPDX-License-Identifier: Apache-2.0
#include "cache/settle.h"

#include "cache/rows.h"
#include "cache/rules.h"
#include "innerkv/codec.h"
#include "transform/transform.h"

namespace innerkv::paging {
namespace {

/// The format that transformed rows have: a rotated row carries data in its padding, and padding
/// costs the same bytes as data.
PageFormat transformed_format(const PageFormat& format) {
    return {format.k, format.v, format.padded_dim()};
}

/// K and V of a page as transformed rows, [32][padded_dim].
struct TransformedPage {
    alignas(kPageAlignment) float k[kPageTokens * kMaxTransformedDim];
    alignas(kPageAlignment) float v[kPageTokens * kMaxTransformedDim];
};

/// The transform with its centre in fp32.
struct WithCentre {
    KeyTransform transform;
    float centre[kMaxTransformedDim];

    WithCentre(const PageTransform& given, int head_dim) : transform(given.transform) {
        if (!given.centre) return;
        load_f16(given.centre, head_dim, centre);
        transform.centre = centre;
    }
    WithCentre(const WithCentre&) = delete;
    WithCentre& operator=(const WithCentre&) = delete;
};

} // namespace

PageTransform page_transform(const PageFormat& format, std::span<const KeyTransform> transforms,
                             const std::byte* centres, std::size_t head) {
    return {transforms.empty() ? KeyTransform{} : transforms[head],
            centres ? centres + head * f16_row_bytes(format.head_dim) : nullptr};
}

void quantize_f16_page(const PageFormat& format, const PageTransform& given,
                       const std::byte* f16_page, std::byte* page) {
    const WithCentre with_centre(given, format.head_dim);
    const KeyTransform& transform = with_centre.transform;
    TransformedPage rows;
    const PageFormat padded = transformed_format(format);
    const int stride = padded.head_dim;
    float row[kMaxTransformedDim];
    for (int token = 0; token < kPageTokens; ++token) {
        load_row(f16_page, Side::k, format.head_dim, token, row);
        transform_key_row(transform, format.head_dim, row, rows.k + token * stride);
        load_row(f16_page, Side::v, format.head_dim, token, row);
        transform_value_row(transform, format.head_dim, row, rows.v + token * stride);
    }
    quantize_page(padded, rows.k, stride, rows.v, stride, page);
}

void dequantize_to_f16_page(const PageFormat& format, const PageTransform& given,
                            const std::byte* page, int rows, std::byte* f16_page) {
    const WithCentre with_centre(given, format.head_dim);
    const KeyTransform& transform = with_centre.transform;
    TransformedPage transformed;
    const PageFormat padded = transformed_format(format);
    const int stride = padded.head_dim;
    dequantize_page(padded, page, transformed.k, stride, transformed.v, stride);
    float row[kMaxTransformedDim];
    for (int token = 0; token < rows; ++token) {
        inverse_transform_key_row(transform, format.head_dim, transformed.k + token * stride, row);
        store_row_saturated(row, Side::k, format.head_dim, token, f16_page);
        inverse_transform_value_row(transform, format.head_dim, transformed.v + token * stride,
                                    row);
        store_row_saturated(row, Side::v, format.head_dim, token, f16_page);
    }
}

} // namespace innerkv::paging
