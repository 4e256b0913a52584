// SPDX-License-Identifier: Apache-2.0
// Codecs on arrays of groups.
#include <algorithm>
#include <string>

#include <nanobind/stl/string.h>

#include "bindings.h"
#include "innerkv/codec.h"
#include "innerkv/error.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace innerkv::python {
namespace {

template <class T, std::size_t Dimensions>
using Array = nb::ndarray<T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Values = Array<const float, 2>;

/// Scales and zero-points as numbers, whatever a page stores: fp32, [groups].
struct Groups {
    std::uint8_t* codes; ///< [groups, 32]
    float* scale;
    float* zero_point;
    bool* asymmetric;
    std::size_t count;
};

Codec codec_from(const std::string& kind, int bits) {
    Codec codec;
    codec.bits = static_cast<std::uint8_t>(std::clamp(bits, 0, 255));
    if (kind == "symmetric")
        codec.kind = CodecKind::symmetric;
    else if (kind == "asymmetric")
        codec.kind = CodecKind::asymmetric;
    else if (kind == "hybrid")
        codec.kind = CodecKind::hybrid;
    else if (kind == "affine")
        codec.kind = CodecKind::affine;
    else
        throw InvalidArgument("codec \"" + kind +
                              "\"; supported are symmetric, asymmetric, hybrid and affine");
    PageFormat{codec, codec, kHeadDims[0]}.validate();
    return codec;
}

/// Value of the middle of an affine group's codes in steps: -(2^bits - 1) / 2 + z / 8.
float affine_offset(Codec codec, std::uint16_t zero_point) {
    const auto byte = static_cast<std::int8_t>(zero_point & 0xff);
    return static_cast<float>(byte) / 8.0f - static_cast<float>((1 << codec.bits) - 1) / 2.0f;
}

void quantize_stored(Codec codec, const float* values, const QuantizeOptions& options, Groups out) {
    for (std::size_t i = 0; i < out.count; ++i) {
        const std::span<const float, kGroupSize> group(values + i * kGroupSize, kGroupSize);
        const QuantizedGroup result = quantize_group(codec, group, options);
        std::copy_n(result.codes, kGroupSize, out.codes + i * kGroupSize);
        const bool affine = codec.kind == CodecKind::affine;
        const bool marked = codec.kind == CodecKind::hybrid && (result.scale & 0x8000) != 0;
        const auto bits = static_cast<std::uint16_t>(
            affine ? (result.scale & 0xff) << 7 : (marked ? result.scale & 0x7fff : result.scale));
        out.scale[i] = float_from_f16(bits);
        out.zero_point[i] = affine ? out.scale[i] * affine_offset(codec, result.zero_point)
                                   : float_from_f16(result.zero_point);
        out.asymmetric[i] = affine || marked || codec.kind == CodecKind::asymmetric;
    }
}

void quantize_unrounded(Codec codec, const float* values, const QuantizeOptions& options,
                        Groups out) {
    for (std::size_t i = 0; i < out.count; ++i) {
        const std::span<const float, kGroupSize> group(values + i * kGroupSize, kGroupSize);
        const UnroundedGroup result = quantize_group_unrounded(codec, group, options);
        std::copy_n(result.codes, kGroupSize, out.codes + i * kGroupSize);
        out.scale[i] = result.scale;
        out.zero_point[i] = result.zero_point;
        out.asymmetric[i] = result.asymmetric;
    }
}

void quantize(const std::string& kind, int bits, int hybrid_asymmetric_bits, bool unrounded,
              const Values& values, const Array<std::uint8_t, 2>& codes,
              const Array<float, 1>& scale, const Array<float, 1>& zero_point,
              const Array<bool, 1>& asymmetric) {
    const Codec codec = codec_from(kind, bits);
    const QuantizeOptions options{hybrid_asymmetric_bits};
    const Groups out{codes.data(), scale.data(), zero_point.data(), asymmetric.data(),
                     values.shape(0)};
    const float* const from = values.data();
    const nb::gil_scoped_release released;
    if (unrounded)
        quantize_unrounded(codec, from, options, out);
    else
        quantize_stored(codec, from, options, out);
}

/// Rows of K and V, [32, head_dim] each, to the bytes of a page and back.
void to_page(const std::string& preset, bool paper, const Values& k, const Values& v,
             const Array<std::uint8_t, 1>& page) {
    const PageFormat format = config_from(preset, paper, 1, 1, static_cast<int>(k.shape(1))).format;
    format.validate();
    if (k.shape(0) != kPageTokens || v.shape(0) != kPageTokens || v.shape(1) != k.shape(1) ||
        page.shape(0) != format.page_bytes())
        throw InvalidArgument("a page takes k and v of [32, head_dim] each");
    const auto stride = static_cast<std::ptrdiff_t>(k.shape(1));
    auto* const bytes = reinterpret_cast<std::byte*>(page.data());
    const float* const keys = k.data();
    const float* const vals = v.data();
    const nb::gil_scoped_release released;
    quantize_page(format, keys, stride, vals, stride, bytes);
}

void from_page(const std::string& preset, bool paper, const Array<const std::uint8_t, 1>& page,
               const Array<float, 2>& k, const Array<float, 2>& v) {
    const PageFormat format = config_from(preset, paper, 1, 1, static_cast<int>(k.shape(1))).format;
    format.validate();
    if (page.shape(0) != format.page_bytes())
        throw InvalidArgument("a page of " + preset + " with head_dim " +
                              std::to_string(format.head_dim) + " has " +
                              std::to_string(format.page_bytes()) + " bytes; these are " +
                              std::to_string(page.shape(0)));
    const auto stride = static_cast<std::ptrdiff_t>(k.shape(1));
    const auto* const bytes = reinterpret_cast<const std::byte*>(page.data());
    float* const keys = k.data();
    float* const vals = v.data();
    const nb::gil_scoped_release released;
    dequantize_page(format, bytes, keys, stride, vals, stride);
}

std::size_t page_bytes(const std::string& preset, bool paper, int head_dim) {
    const PageFormat format = config_from(preset, paper, 1, 1, head_dim).format;
    format.validate();
    return format.page_bytes();
}

} // namespace

void bind_codecs(nb::module_& module) {
    module.def("quantize", quantize, "kind"_a, "bits"_a, "hybrid_asymmetric_bits"_a, "unrounded"_a,
               "values"_a, "codes"_a, "scale"_a, "zero_point"_a, "asymmetric"_a);
    module.def("to_page", to_page, "preset"_a, "paper"_a, "k"_a, "v"_a, "page"_a);
    module.def("from_page", from_page, "preset"_a, "paper"_a, "page"_a, "k"_a, "v"_a);
    module.def("page_bytes", page_bytes, "preset"_a, "paper"_a, "head_dim"_a);
}

} // namespace innerkv::python
