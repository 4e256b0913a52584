// SPDX-License-Identifier: Apache-2.0
// What a Model holds.
#pragma once

#include "gguf_file.h"
#include "parameters.h"
#include "runner/runner.h"
#include "vocabulary.h"
#include "weights.h"

namespace innerkv::runner {

struct Model::Impl {
    explicit Impl(const std::string& path);

    GgufFile file;
    Parameters parameters;
    ModelInfo info;
    Vocabulary vocabulary;
    Weights weights;
};

struct ModelAccess {
    static const Model::Impl& parts(const Model& model) { return *model.impl_; }
};

} // namespace innerkv::runner
