// SPDX-License-Identifier: Apache-2.0
// The table of presets, and which formats there are.
#include "innerkv/format.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "format/layout.h"
#include "innerkv/error.h"

namespace innerkv {
namespace {

constexpr int kSinkTokens = 32;
constexpr int kRecentTokens = 96;

constexpr Preset quantized_preset(std::string_view name, Codec k, Codec v,
                                  std::string_view summary) {
    return {name, k, v, kSinkTokens, kRecentTokens, KeyNormPolicy::balanced, true, summary};
}

constexpr Preset kPresets[] = {
    quantized_preset("base", affine(3), affine(3), "3-bit keys and values"),
    quantized_preset("small", affine(3), affine(2), "3-bit keys, 2-bit values"),
    quantized_preset("hybrid", affine(3), hybrid(2),
                     "3-bit keys, 2-bit values, symmetric or asymmetric per group"),
    quantized_preset("k4v4", affine(4), affine(4), "4-bit keys and values"),
    quantized_preset("k4v3", affine(4), affine(3), "4-bit keys, 3-bit values"),
    quantized_preset("k4v2", affine(4), affine(2), "4-bit keys, 2-bit values"),
    quantized_preset("k8v8", symmetric(8), symmetric(8), "8-bit keys and values"),
    {"f16", kF16, kF16, kSinkTokens, kRecentTokens, KeyNormPolicy::none, false,
     "fp16 keys and values, nothing quantized"},
};

void validate_side(Codec codec, const char* side) {
    if (codec.quantized() ? has_supported_bits(codec) : codec == kF16) return;
    throw InvalidArgument(std::string(side) + " codec has " + std::to_string(codec.bits) +
                          " bits; supported are 2, 3, 4 and 8 (symmetric, asymmetric, hybrid), 2, "
                          "3 and 4 (affine) and "
                          "16 (f16)");
}

} // namespace

void PageFormat::validate() const {
    validate_side(k, "K");
    validate_side(v, "V");
    if (k.quantized() != v.quantized())
        throw InvalidArgument("one of K and V is f16 and the other quantized; "
                              "choose f16 or a quantized codec for both");
    if (std::find(std::begin(kHeadDims), std::end(kHeadDims), head_dim) == std::end(kHeadDims)) {
        std::string supported;
        for (int dim : kHeadDims)
            supported += (supported.empty() ? "" : ", ") + std::to_string(dim);
        throw InvalidArgument("head dimension " + std::to_string(head_dim) +
                              " is not supported; supported are " + supported);
    }
}

namespace {

Codec codec_of_bits(const char* side, int bits) {
    if (bits == 8) return symmetric(bits);
    if (bits >= 2 && bits <= 4) return affine(bits);
    throw InvalidArgument(std::string(side) + " of " + std::to_string(bits) +
                          " bits; supported are 2, 3, 4 and 8");
}

} // namespace

LayerCodecs codecs_of_bits(int k_bits, int v_bits) {
    return {codec_of_bits("keys", k_bits), codec_of_bits("values", v_bits)};
}

double mean_bits_per_value(std::span<const LayerCodecs> layers, int head_dim) {
    double sum = 0.0;
    for (const LayerCodecs& layer : layers)
        sum += PageFormat{layer.k, layer.v, head_dim}.bits_per_value();
    return layers.empty() ? 0.0 : sum / static_cast<double>(layers.size());
}

std::string_view kind_name(CodecKind kind) {
    switch (kind) {
    case CodecKind::f16:
        return "f16";
    case CodecKind::symmetric:
        return "symmetric";
    case CodecKind::asymmetric:
        return "asymmetric";
    case CodecKind::hybrid:
        return "hybrid";
    case CodecKind::affine:
        return "affine";
    }
    return "unknown";
}

std::span<const Preset> presets() { return kPresets; }

std::optional<KeyNormPolicy> find_key_norm(std::string_view name) {
    if (name == "none") return KeyNormPolicy::none;
    if (name == "prefill") return KeyNormPolicy::prefill;
    if (name == "balanced") return KeyNormPolicy::balanced;
    return std::nullopt;
}

Preset paper_preset(Preset preset) {
    for (Codec* codec : {&preset.k, &preset.v})
        if (codec->kind == CodecKind::affine) *codec = symmetric(codec->bits);
    preset.rotate = false;
    if (preset.key_norm == KeyNormPolicy::balanced) preset.key_norm = KeyNormPolicy::prefill;
    return preset;
}

const Preset& find_preset(std::string_view name) {
    for (const Preset& preset : kPresets)
        if (preset.name == name) return preset;
    std::string names;
    for (const Preset& preset : kPresets)
        names.append(names.empty() ? "" : ", ").append(preset.name);
    throw InvalidArgument("no cache preset is called '" + std::string(name) + "'; there are " +
                          names);
}

} // namespace innerkv
