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

void check_sizes(std::size_t groups, std::size_t size, std::size_t codes, std::size_t code_size,
                 std::size_t scales, std::size_t zero_points, std::size_t asymmetric) {
    if (size == kGroupSize && code_size == kGroupSize && codes == groups && scales == groups &&
        zero_points == groups && asymmetric == groups)
        return;
    throw InvalidArgument(
        "quantize takes values and codes of [groups, 32], and scale, zero_point and "
        "asymmetric of [groups]");
}

void quantize(const std::string& kind, int bits, int hybrid_asymmetric_bits, bool unrounded,
              const Values& values, const Array<std::uint8_t, 2>& codes,
              const Array<float, 1>& scale, const Array<float, 1>& zero_point,
              const Array<bool, 1>& asymmetric) {
    const Codec codec = codec_from(kind, bits);
    const QuantizeOptions options{hybrid_asymmetric_bits};
    const std::size_t groups = values.shape(0);
    check_sizes(groups, values.shape(1), codes.shape(0), codes.shape(1), scale.shape(0),
                zero_point.shape(0), asymmetric.shape(0));
    const float* const from = values.data();
    std::uint8_t* const to_codes = codes.data();
    float* const to_scale = scale.data();
    float* const to_zero_point = zero_point.data();
    bool* const to_asymmetric = asymmetric.data();
    const nb::gil_scoped_release released;
    for (std::size_t i = 0; i < groups; ++i) {
        const std::span<const float, kGroupSize> group(from + i * kGroupSize, kGroupSize);
        const UnroundedGroup result =
            unrounded ? quantize_group_unrounded(codec, group, options)
                      : group_as_numbers(codec, quantize_group(codec, group, options));
        std::copy_n(result.codes, kGroupSize, to_codes + i * kGroupSize);
        to_scale[i] = result.scale;
        to_zero_point[i] = result.zero_point;
        to_asymmetric[i] = result.asymmetric;
    }
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
    if (k.shape(0) != kPageTokens || v.shape(0) != kPageTokens || v.shape(1) != k.shape(1))
        throw InvalidArgument("a page gives k and v of [32, head_dim] each");
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
