// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>

#include "llama.h"
#include "runner/runner.h"

namespace innerkv::runner {

struct Sampler::Impl {
    struct Free {
        void operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }
    };
    std::unique_ptr<llama_sampler, Free> chain; ///< null: greedy
    std::vector<llama_token_data> candidates;
    std::size_t vocabulary_size = 0;
};

Sampler::Sampler(const Model& model, const SamplerOptions& options)
    : impl_(std::make_unique<Impl>()) {
    if (!(options.temperature >= 0.0f) || !(options.top_p > 0.0f && options.top_p <= 1.0f) ||
        !(options.min_p >= 0.0f && options.min_p <= 1.0f) || options.top_k < 0) {
        throw InvalidArgument("a sampler takes temperature >= 0, top_k >= 0, top_p above 0 up to 1 "
                              "and min_p from 0 to 1");
    }
    impl_->vocabulary_size = static_cast<std::size_t>(model.info().vocabulary_size);
    if (options.temperature == 0.0f) {
        return;
    }
    llama_sampler* const chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    impl_->chain.reset(chain);
    if (options.top_k > 0) {
        llama_sampler_chain_add(chain, llama_sampler_init_top_k(options.top_k));
    }
    llama_sampler_chain_add(chain, llama_sampler_init_top_p(options.top_p, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_min_p(options.min_p, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_temp(options.temperature));
    llama_sampler_chain_add(chain, llama_sampler_init_dist(options.seed));
}

Sampler::~Sampler() = default;

Token Sampler::sample(std::span<const float> logits) {
    if (logits.size() != impl_->vocabulary_size) {
        throw InvalidArgument("a sampler of a vocabulary of " +
                              std::to_string(impl_->vocabulary_size) + " was given " +
                              std::to_string(logits.size()) + " logits");
    }
    if (!impl_->chain) {
        return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
    impl_->candidates.resize(logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i) {
        impl_->candidates[i] = {static_cast<Token>(i), logits[i], 0.0f};
    }
    llama_token_data_array array{impl_->candidates.data(), impl_->candidates.size(),
                                 /*selected =*/-1, /*sorted =*/false};
    llama_sampler_apply(impl_->chain.get(), &array);
    const Token token = array.data[array.selected].id;
    llama_sampler_accept(impl_->chain.get(), token);
    return token;
}

} // namespace innerkv::runner
