// SPDX-License-Identifier: Apache-2.0
#include "reference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "runner/backend.h"

namespace innerkv::runner::test {
namespace {

struct Softmax {
    double log_total = 0.0; ///< log of the sum of exp(logit)
    double top = 0.0;       ///< the largest logit
};

/// `weights` gets exp(logit - top).
Softmax softmax(std::span<const float> logits, std::vector<float>& weights) {
    const float largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    weights.resize(logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i) {
        weights[i] = std::exp(logits[i] - largest);
        sum += weights[i];
    }
    return {.log_total = largest + std::log(sum), .top = largest};
}

auto top(std::span<const float> logits) {
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

/// Our logits of `tokens` on the f16 preset, in the chunks they are computed in.
template <typename Work>
void each_chunk(const std::shared_ptr<Model>& model, std::span<const Token> tokens,
                const Work& work) {
    const auto vocabulary_size = static_cast<std::size_t>(model->info().vocabulary_size);
    SessionOptions options = make_options("f16", static_cast<int>(tokens.size()));
    options.threads = 1;
    options.expand_weights = false; // libllama's activations are rounded to 8 bits, too
    Session session(model, options);
    session.evaluate(tokens, 0, [&](std::int64_t first, std::span<const float> logits) {
        work(tokens.subspan(static_cast<std::size_t>(first), logits.size() / vocabulary_size),
             logits);
    });
}

} // namespace

Reference::Reference(const std::string& path, int context, bool flash) {
    set_log({});
    cpu_device();
    model_.reset(llama_model_load_from_file(path.c_str(), llama_model_default_params()));
    if (!model_) {
        throw std::runtime_error("libllama cannot load " + path);
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<std::uint32_t>(context);
    params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = 1;
    params.swa_full = true; // windows by the mask alone
    params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    context_.reset(llama_init_from_model(model_.get(), params));
    if (!context_) {
        throw std::runtime_error("libllama cannot make a context for " + path);
    }
    vocabulary_size_ = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
}

std::span<const float> Reference::decode(std::span<const Token> tokens) {
    const auto count = static_cast<int>(tokens.size());
    llama_batch batch = llama_batch_init(count, 0, 1);
    batch.n_tokens = count;
    for (int i = 0; i < count; ++i) {
        batch.token[i] = tokens[static_cast<std::size_t>(i)];
        batch.pos[i] = position_ + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    const int status = llama_decode(context_.get(), batch);
    llama_batch_free(batch);
    if (status != 0) {
        throw std::runtime_error("llama_decode failed");
    }
    position_ += count;
    return {llama_get_logits(context_.get()),
            tokens.size() * static_cast<std::size_t>(vocabulary_size_)};
}

void Agreement::add(std::span<const float> expected, std::span<const float> actual) {
    const auto size = static_cast<std::size_t>(vocabulary_size_);
    std::vector<float> p_weights;
    std::vector<float> q_weights;
    for (std::size_t first = 0; first < expected.size(); first += size) {
        const std::span<const float> p = expected.subspan(first, size);
        const std::span<const float> q = actual.subspan(first, size);
        const Softmax p_softmax = softmax(p, p_weights);
        const Softmax q_softmax = softmax(q, q_weights);
        // sum of p (log p - log q); the totals come out of it because p sums to 1
        double sum = 0.0;
        for (std::size_t i = 0; i < size; ++i) {
            sum += double{p_weights[i]} * (double{p[i]} - double{q[i]});
        }
        kld_ += sum * std::exp(p_softmax.top - p_softmax.log_total) - p_softmax.log_total +
                q_softmax.log_total;
        same_top_ += top(p) == top(q) ? 1 : 0;
        ++rows_;
    }
}

Agreement compare(const std::shared_ptr<Model>& model, std::span<const Token> tokens,
                  Reference& reference) {
    Agreement agreement(model->info().vocabulary_size);
    each_chunk(model, tokens, [&](std::span<const Token> chunk, std::span<const float> logits) {
        agreement.add(reference.decode(chunk), logits);
    });
    return agreement;
}

Agreements compare(const std::shared_ptr<Model>& model, std::span<const Token> tokens,
                   Reference& flash, Reference& plain) {
    const int vocabulary_size = model->info().vocabulary_size;
    Agreements agreements{Agreement(vocabulary_size), Agreement(vocabulary_size)};
    each_chunk(model, tokens, [&](std::span<const Token> chunk, std::span<const float> logits) {
        const std::span<const float> expected = flash.decode(chunk);
        agreements.ours.add(expected, logits);
        agreements.itself.add(expected, plain.decode(chunk));
    });
    return agreements;
}

void record(const std::string& prefix, const Agreement& agreement) {
    std::ostringstream kld;
    kld << agreement.mean_kld();
    testing::Test::RecordProperty(prefix + "mean_kld", kld.str());
    testing::Test::RecordProperty(prefix + "top1", std::to_string(agreement.top1()));
}

} // namespace innerkv::runner::test
