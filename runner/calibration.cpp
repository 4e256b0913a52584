// SPDX-License-Identifier: Apache-2.0
#include "runner/calibration.h"

#include "gguf_file.h"
#include "hash.h"
#include "model.h"

namespace innerkv::runner {
namespace {

bool is_key_weight(std::string_view name) {
    return name.find(".attn_k") != std::string_view::npos ||
           name.find(".attn_qkv.") != std::string_view::npos ||
           name.find(".attn_norm.") != std::string_view::npos;
}

bool has_shape(const Calibration& calibration, const ModelInfo& info) {
    return calibration.layers == info.layers && calibration.kv_heads == info.kv_heads &&
           calibration.head_dim == info.head_dim;
}

} // namespace

double Calibration::bits_per_value() const { return mean_bits_per_value(layer_codecs, head_dim); }

std::vector<KeyTransform> Calibration::transforms() const {
    std::vector<KeyTransform> heads(static_cast<std::size_t>(layers) *
                                    static_cast<std::size_t>(kv_heads));
    for (std::size_t i = 0; i < heads.size(); ++i) {
        const std::size_t first = i * static_cast<std::size_t>(head_dim);
        heads[i].norm = norm.data() + first;
        heads[i].centre = centre.data() + first;
        heads[i].rotate = true;
    }
    return heads;
}

std::string hash_of(std::string_view text) {
    Hash hash;
    hash.add(text);
    return hash.text();
}

std::string hash_of(const Model& model) {
    Hash hash;
    const GgufFile& file = ModelAccess::parts(model).file;
    hash.add_text(model.info().architecture);
    for (const TensorEntry& tensor : file.tensors()) {
        hash.add_text(tensor.name);
        hash.add(tensor.type);
        for (const std::int64_t extent : tensor.shape) {
            hash.add(extent);
        }
        if (is_key_weight(tensor.name)) {
            hash.add(file.data(tensor), tensor.bytes);
        }
    }
    return hash.text();
}

Calibration new_calibration(const Model& model) {
    const ModelInfo& info = model.info();
    Calibration calibration;
    calibration.architecture = info.architecture;
    calibration.model = info.name;
    calibration.model_hash = hash_of(model);
    calibration.layers = info.layers;
    calibration.kv_heads = info.kv_heads;
    calibration.head_dim = info.head_dim;
    return calibration;
}

void check_shape(const Calibration& calibration, const ModelInfo& info) {
    if (calibration.architecture == info.architecture && has_shape(calibration, info)) {
        return;
    }
    throw ModelError(calibration.path + ": was made for another model, '" + calibration.model +
                     "' (" + calibration.architecture + "); " + info.path + " is '" + info.name +
                     "' (" + info.architecture + "). Make one with innerkv calibrate");
}

void check_model(const Calibration& calibration, const Model& model) {
    const ModelInfo& info = model.info();
    const std::string hash = hash_of(model);
    if (calibration.model_hash == hash && has_shape(calibration, info)) {
        return;
    }
    throw ModelError(calibration.path + ": was made for another model, '" + calibration.model +
                     "' (" + calibration.architecture + ", " + calibration.model_hash + "); " +
                     info.path + " is '" + info.name + "' (" + info.architecture + ", " + hash +
                     "). Make one with innerkv calibrate");
}

} // namespace innerkv::runner
