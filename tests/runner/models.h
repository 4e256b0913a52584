// SPDX-License-Identifier: Apache-2.0
// Model files for tests.
#pragma once

#include <string>
#include <vector>

#include "runner/runner.h"

namespace innerkv::runner::test {

/// A model of tools/make_random_gguf.py.
std::string random_model(const std::string& name);

/// "smollm2" or "gemma3" from $INNERKV_MODEL_SMOLLM2, $INNERKV_MODEL_GEMMA3 or the cache of
/// tools/model.py; empty: not there.
std::string real_model(const std::string& name);

/// A copy of a model with outlier channels in its keys, by tools/make_outlier_gguf.py; a scratch file that the
/// caller removes.
std::string make_outliers(const std::string& model, float factor, int pairs);
/// A copy with all weights in F32, by the same tool.
std::string make_f32(const std::string& model);

/// A file name in the build folder that no other test process uses.
std::string scratch_file(const std::string& name);

/// The first bytes of a novel.
std::string sample_text(std::size_t bytes);

/// Tokens without meaning, the same for the same seed.
std::vector<Token> random_tokens(int count, int vocabulary_size, unsigned seed);

} // namespace innerkv::runner::test
