// SPDX-License-Identifier: Apache-2.0
// The static key transform of a model: channel norms and centres that all its sequences share, and the
// file that holds them (docs/calibration.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

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
    std::int64_t tokens = 0;  ///< whose keys were taken, per layer
    int layers = 0;
    int kv_heads = 0;
    int head_dim = 0;
    std::vector<float> norm;   ///< [layers, kv_heads, head_dim]
    std::vector<float> centre; ///< likewise

    /// One per layer and KV head, with rotation; they point into this calibration.
    std::vector<KeyTransform> transforms() const;
};

/// FNV-1a, 64 bits, as 16 hexadecimal digits.
std::string hash_of(std::string_view text);
/// Of all tensors' names, types and shapes, and of the weights that keys are made with. Another file is
/// another model, also where it holds the same weights in other types.
std::string hash_of(const Model& model);

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

} // namespace innerkv::runner
