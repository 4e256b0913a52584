// SPDX-License-Identifier: Apache-2.0
#include "runner/calibrator.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "innerkv/codec.h"

namespace innerkv::runner {
namespace {

/// One channel of keys over all tokens.
struct Channel {
    double sum = 0.0;
    float least = std::numeric_limits<float>::infinity();
    float largest = -std::numeric_limits<float>::infinity();

    void add(float key) {
        sum += key;
        least = std::min(least, key);
        largest = std::max(largest, key);
    }
    /// max over tokens |K - centre|
    float magnitude(float centre) const { return std::max(largest - centre, centre - least); }
};

/// Adds fp16 row `row` of one head's pages.
void add_key(const PageRun& run, int head, std::int64_t row, std::span<Channel> channels) {
    const auto index = static_cast<std::size_t>(row);
    const std::byte* next = run.pages[index / kPageTokens] +
                            static_cast<std::size_t>(head) * run.head_stride +
                            index % kPageTokens * channels.size() * sizeof(std::uint16_t);
    for (Channel& channel : channels) {
        std::uint16_t bits;
        std::memcpy(&bits, next, sizeof bits);
        channel.add(float_from_f16(bits));
        next += sizeof bits;
    }
}

} // namespace

struct Calibrator::Impl {
    Impl(std::shared_ptr<Model> used_model, int window, int threads)
        : model(std::move(used_model)), info(model->info()) {
        SessionOptions options = make_options("f16", window);
        options.threads = threads;
        session = std::make_unique<Session>(model, options);
        channels.resize(static_cast<std::size_t>(info.layers) *
                        static_cast<std::size_t>(info.kv_heads) *
                        static_cast<std::size_t>(info.head_dim));
    }

    /// Adds the session's tokens from `begin` on, those of the sink left out. The newest chunk is in the
    /// recent window of every layer, also where a sliding window has dropped what came before.
    void take(std::int64_t begin) {
        const std::int64_t first =
            std::max<std::int64_t>(begin, session->options().preset.sink_tokens);
        tokens += std::max<std::int64_t>(session->length() - first, 0);
        const auto dim = static_cast<std::size_t>(info.head_dim);
        auto next = channels.begin();
        for (int layer = 0; layer < info.layers; ++layer) {
            const PageRun run = session->view(layer).recent;
            for (int head = 0; head < info.kv_heads; ++head, next += info.head_dim) {
                for (std::int64_t token = first; token < session->length(); ++token) {
                    add_key(run, head, token - run.first_token, {&*next, dim});
                }
            }
        }
    }

    std::shared_ptr<Model> model;
    const ModelInfo& info;
    std::unique_ptr<Session> session;
    std::vector<Channel> channels; ///< [layers, kv_heads, head_dim]
    std::int64_t tokens = 0;
};

Calibrator::Calibrator(std::shared_ptr<Model> model, int window, int threads)
    : impl_(std::make_unique<Impl>(std::move(model), window, threads)) {}

Calibrator::~Calibrator() = default;

int Calibrator::threads() const { return impl_->session->options().threads; }

bool Calibrator::add(std::span<const Token> tokens, const Session::Progress& progress) {
    Session& session = *impl_->session;
    session.clear();
    const auto chunk = static_cast<std::size_t>(session.options().chunk);
    for (std::size_t begin = 0; begin < tokens.size(); begin += chunk) {
        session.prompt(tokens.subspan(begin, std::min(chunk, tokens.size() - begin)));
        impl_->take(static_cast<std::int64_t>(begin));
        if (progress && !progress(session.length(), static_cast<std::int64_t>(tokens.size()))) {
            return false;
        }
    }
    return true;
}

Calibration Calibrator::result() const {
    const ModelInfo& info = impl_->info;
    if (impl_->tokens == 0) {
        throw InvalidArgument("a calibration needs windows that are longer than the sink of " +
                              std::to_string(impl_->session->options().preset.sink_tokens) +
                              " tokens; none was given");
    }
    Calibration result = new_calibration(*impl_->model);
    result.tokens = impl_->tokens;
    for (const Channel& channel : impl_->channels) {
        const auto centre = static_cast<float>(channel.sum / static_cast<double>(impl_->tokens));
        result.centre.push_back(centre);
        result.norm.push_back(channel.magnitude(centre));
    }
    const auto dim = static_cast<std::size_t>(info.head_dim);
    for (std::size_t first = 0; first < result.norm.size(); first += dim) {
        norms_from_magnitudes(std::span(result.norm).subspan(first, dim));
    }
    return result;
}

} // namespace innerkv::runner
