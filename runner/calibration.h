// SPDX-License-Identifier: Apache-2.0
// What is known of a model beforehand: its static key transform, which is channel norms and centres that all its
// sequences share; the precision of each layer; and the file that holds one of the two, or both (docs/calibration.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "innerkv/format.h"
#include "innerkv/view.h"
#include "runner/runner.h"

namespace innerkv::runner {

/// Channels in the order that the cache has them: rope pairs are half a head apart.
struct Calibration {
    std::string path;         ///< of the file it was read from; empty: none
    std::string architecture; ///< of the model it belongs to
    std::string model;        ///< that model's name
    std::string model_hash;   ///< hash_of(Model)
    std::string text_hash;    ///< hash_of(text) of what the keys were taken from
    std::int64_t tokens = 0;  ///< that were read, those of the sink left out
    int layers = 0;
    int kv_heads = 0;
    int head_dim = 0;
    std::vector<float> norm;   ///< [layers, kv_heads, head_dim]; empty: no key transform
    std::vector<float> centre; ///< likewise
    std::vector<LayerCodecs>
        layer_codecs; ///< [layers], of codecs_of_bits; empty: no precision by layer

    bool has_transforms() const { return !norm.empty(); }
    /// PageFormat::bits_per_value of layer_codecs, the mean over layers; 0 without them.
    double bits_per_value() const;
    /// One per layer and KV head, with rotation; they point into this calibration, which has_transforms().
    std::vector<KeyTransform> transforms() const;
};

/// FNV-1a, 64 bits, as 16 hexadecimal digits.
std::string hash_of(std::string_view text);
/// Of all tensors' names, types and shapes, and of the weights that keys are made with. Another file is
/// another model, also where it holds the same weights in other types.
std::string hash_of(const Model& model);

/// Of this model, holding nothing yet.
Calibration new_calibration(const Model& model);

/// Whether a GGUF file says that it is a calibration. Throws ModelError where it is no GGUF file.
bool is_calibration(const std::string& path);

/// Throws ModelError where the file is not a calibration, of another version, or damaged.
std::shared_ptr<const Calibration> read_calibration(const std::string& path);

/// Throws Error where write_calibration could not write the file: asked before the work is done.
void require_writable(const std::string& path);

/// The file appears complete or not at all; only a regular file is replaced. Throws InvalidArgument at
/// numbers that the cache does not take, Error where the file cannot be written.
void write_calibration(const Calibration& calibration, const std::string& path);

/// Throws ModelError unless the calibration belongs to this model.
void check_model(const Calibration& calibration, const Model& model);
/// Where there are metadata alone: unless it belongs to a model with as many layers and heads.
void check_shape(const Calibration& calibration, const ModelInfo& info);

} // namespace innerkv::runner
