// SPDX-License-Identifier: Apache-2.0
// The same prompt on a second cache: where its text parts from the first, and how far its predictions
// are over the text that the first one generated.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "generate.h"
#include "kld.h"
#include "runner/runner.h"

namespace innerkv::cli {

/// Logits that the first run chose its tokens from, as far as they fit into 1 GiB.
class KeptLogits {
public:
    explicit KeptLogits(int vocabulary_size);

    void add(std::span<const float> logits);
    std::size_t rows() const { return logits_.size() / vocabulary_size_; }
    std::span<const float> row(std::size_t index) const;

private:
    std::size_t vocabulary_size_;
    std::size_t most_rows_;
    std::vector<float> logits_;
};

struct Comparison {
    /// The text is what the second cache generates alone; speed and cache are over the first one's text.
    Generation generation;
    bool parted = false;           ///< the texts differ
    std::size_t common_tokens = 0; ///< before they do
    std::string common_text;
    Score score; ///< of the first against the second, teacher-forced over the first one's text
};

struct CompareOptions {
    runner::SessionOptions session;
    runner::SamplerOptions sampler;
    int tokens = 256;
};

/// `first` and `kept` are of the first run on the same prompt, with the same sampler options. Empty:
/// interrupted before the second cache had walked through the first one's text.
std::optional<Comparison> compare(const std::shared_ptr<runner::Model>& model,
                                  std::span<const runner::Token> prompt, const Generation& first,
                                  const KeptLogits& kept, const CompareOptions& options);

} // namespace innerkv::cli
