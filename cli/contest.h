// SPDX-License-Identifier: Apache-2.0
// Caches that read the same tokens side by side, each prediction compared with the first one's, the
// reference's. Every token attends as in decoding: to the quantized history beyond the cache's windows.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kld.h"
#include "runner/runner.h"

namespace innerkv::cli {

struct ContestOptions {
    int context = 0; ///< tokens of the longest item
    int threads = 0; ///< 0: all cores
    std::string isa;
    std::string key_norm;                                   ///< empty: the presets' own
    std::string codec;                                      ///< as --codec has it
    std::shared_ptr<const runner::Calibration> calibration; ///< null: none
    Arithmetic arithmetic = Arithmetic::integer;
    /// As runner::SessionOptions has it; what is judged otherwise is decoding.
    bool expand_weights = false;
};

/// What one cache made of one item.
struct Standing {
    std::vector<RowScore> rows; ///< in the order of the tokens
    std::int64_t generated = 0; ///< tokens that the reference generated,
    std::int64_t common = 0; ///< and how many of them this cache generated before it first differed
    runner::CacheReport report; ///< at the item's end
};

/// A cache by its name.
struct CacheFormat {
    std::string cache;
    double bits_per_value = 0; ///< of the format, windows left out
};

/// All sessions take a block of tokens in turn, so that no more than one block of the reference's logits
/// is held: in fp32, for fp16 would blur divergences of 1e-4.
class Contest {
public:
    /// Gets the tokens processed by all sessions so far; false: stop.
    using Counter = std::function<bool(std::int64_t done)>;

    /// The first of `caches` is the reference.
    Contest(const std::shared_ptr<runner::Model>& model, const std::vector<std::string>& caches,
            const ContestOptions& options, Counter counter);

    int threads() const;
    /// The reference's first.
    std::vector<CacheFormat> formats() const;
    std::int64_t done() const { return done_; }

    /// Empties all sessions and standings.
    void clear();

    // Each returns false where it was stopped; the item then does not count.

    /// Processes tokens without a score.
    bool read(std::span<const runner::Token> tokens);
    /// Processes all but the last and scores the predictions of tokens `first`, which is at least 1,
    /// to the last.
    bool score(std::span<const runner::Token> tokens, std::size_t first);
    /// Generates greedily behind what was read: the reference `tokens` tokens, or fewer if it ends its
    /// turn, the others as many as they have in common with it.
    bool generate(int tokens);

    /// Every session back to `tokens`, which it has read first, with the cache that it had then: cut
    /// back, or read again where that would leave another cache behind. False: stopped.
    bool go_back(std::span<const runner::Token> tokens);

    /// The caches' standings since clear(), the reference's first.
    std::vector<Standing> standings();

private:
    struct Contestant {
        std::string cache;
        std::unique_ptr<runner::Session> session;
        Standing standing;
    };

    bool score_block(std::span<const runner::Token> tokens, std::size_t first);
    void keep_reference(std::span<const float> logits);
    void score_rows(Contestant& contestant, std::span<const runner::Token> next,
                    std::size_t reference_row, std::span<const float> logits);
    RowScore score_row(runner::Token next, std::size_t reference_row,
                       std::span<const float> logits) const;
    bool write(runner::Session& session, runner::Token token);
    bool go_on();
    runner::Session::Progress counter();

    std::shared_ptr<runner::Model> model_;
    Counter counter_;
    std::size_t vocabulary_;
    std::int64_t block_;
    std::vector<Contestant> contestants_; ///< the reference first
    std::vector<float> reference_logits_; ///< [rows of the block, vocabulary]
    std::vector<Prediction> reference_predictions_;
    std::int64_t done_ = 0;
    bool stopped_ = false;
};

} // namespace innerkv::cli
