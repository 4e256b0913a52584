// SPDX-License-Identifier: Apache-2.0
// libllama decoding a model itself, and how far two sets of logits are from each other.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "llama.h"
#include "runner/runner.h"

namespace innerkv::runner::test {

class Reference {
public:
    /// An f16 cache and one thread; `flash`: its flash attention.
    Reference(const std::string& path, int context, bool flash);
    /// Logits of each token, [tokens, vocabulary_size], valid until the next call. The tokens follow
    /// those of the calls before.
    std::span<const float> decode(std::span<const Token> tokens);

private:
    struct FreeModel {
        void operator()(llama_model* model) const { llama_model_free(model); }
    };
    struct FreeContext {
        void operator()(llama_context* context) const { llama_free(context); }
    };
    std::unique_ptr<llama_model, FreeModel> model_;
    std::unique_ptr<llama_context, FreeContext> context_;
    int position_ = 0;
    int vocabulary_size_ = 0;
};

/// Agreement of next-token distributions over many positions.
class Agreement {
public:
    explicit Agreement(int vocabulary_size) : vocabulary_size_(vocabulary_size) {}
    /// Rows [n, vocabulary_size] of each.
    void add(std::span<const float> expected, std::span<const float> actual);

    int rows() const { return rows_; }
    double mean_kld() const { return kld_ / rows_; }
    double top1() const { return static_cast<double>(same_top_) / rows_; }

private:
    int vocabulary_size_;
    int rows_ = 0;
    int same_top_ = 0;
    double kld_ = 0.0;
};

/// Our logits of `tokens` on the f16 preset and one thread against the reference's.
Agreement compare(const std::shared_ptr<Model>& model, std::span<const Token> tokens,
                  Reference& reference);

/// Against libllama with flash attention, and what rounding alone does to a model: libllama without flash
/// attention against the same.
struct Agreements {
    Agreement ours;
    Agreement itself;
};
Agreements compare(const std::shared_ptr<Model>& model, std::span<const Token> tokens,
                   Reference& flash, Reference& plain);

/// Writes the agreement into the running test's XML report.
void record(const std::string& prefix, const Agreement& agreement);

} // namespace innerkv::runner::test
