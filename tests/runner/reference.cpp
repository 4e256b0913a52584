// SPDX-License-Identifier: Apache-2.0
#include "reference.h"

#include <ggml_backends.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace innerkv::runner::test {
namespace {

double log_sum_exp(std::span<const float> logits) {
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    for (const float logit : logits) {
        sum += std::exp(logit - largest);
    }
    return largest + std::log(sum);
}

auto top(std::span<const float> logits) {
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

} // namespace

Reference::Reference(const std::string& path, int context, bool flash, int threads) {
    set_log({});
    load_ggml_backends();
    model_.reset(llama_model_load_from_file(path.c_str(), llama_model_default_params()));
    if (!model_) {
        throw std::runtime_error("libllama cannot load " + path);
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<std::uint32_t>(context);
    params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = threads;
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
    for (std::size_t first = 0; first < expected.size(); first += size) {
        const std::span<const float> p = expected.subspan(first, size);
        const std::span<const float> q = actual.subspan(first, size);
        const double p_total = log_sum_exp(p);
        const double q_total = log_sum_exp(q);
        for (std::size_t i = 0; i < size; ++i) {
            const double log_p = p[i] - p_total;
            kld_ += std::exp(log_p) * (log_p - (q[i] - q_total));
        }
        same_top_ += top(p) == top(q) ? 1 : 0;
        ++rows_;
    }
}

} // namespace innerkv::runner::test
