// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>
#include <string_view>
#include <vector>

#include "contender.h"
#include "innerkv/attention.h"
#include "innerkv/cache.h"

namespace innerkv::bench {
namespace {

constexpr std::int64_t kAppendTokens = 512;

CacheConfig config_of(const AttentionCase& attention, const Preset& preset) {
    CacheConfig config =
        CacheConfig::from_preset(preset, 1, attention.kv_heads, attention.head_dim);
    config.max_tokens = attention.total_context();
    config.max_sequences = attention.batch;
    config.max_append = static_cast<int>(kAppendTokens);
    return config;
}

class InnerkvContender final : public Contender {
public:
    InnerkvContender(const AttentionCase& attention, const Preset& preset, std::string_view isa,
                     ThreadPool& pool, const Checkpoint& checkpoint)
        : attention_(attention), name_(preset.name), isa_(isa), pool_(pool),
          cache_(config_of(attention, preset)),
          k_(attention.row_elements() * static_cast<std::size_t>(kAppendTokens)), v_(k_.size()) {
        shape_.q_heads = attention.q_heads;
        shape_.kv_heads = attention.kv_heads;
        shape_.format = preset.format(attention.head_dim);
        add_sequences(checkpoint);
        out_.resize(queries_.size());
    }

    std::string name() const override {
        return "innerkv:" + name_ + (attention_.shared ? ":shared" : "");
    }

    std::size_t bytes_read() const override {
        const std::size_t dense_bytes =
            PageFormat{kF16, kF16, attention_.head_dim}.page_bytes() / kPageTokens;
        std::size_t bytes = 0;
        std::set<const std::byte*> counted; // forks share pages
        for (const SequenceId sequence : sequences_) {
            const SequenceView view = cache_.view(0, sequence);
            for (const std::byte* page : view.quantized.pages)
                if (counted.insert(page).second) bytes += shape_.format.page_bytes();
            for (const PageRun* run : {&view.sink, &view.recent}) {
                std::int64_t tokens = run->tokens;
                for (const std::byte* page : run->pages) {
                    const std::int64_t rows = std::min<std::int64_t>(tokens, kPageTokens);
                    tokens -= rows;
                    if (counted.insert(page).second)
                        bytes += static_cast<std::size_t>(rows) * dense_bytes;
                }
            }
        }
        return bytes * static_cast<std::size_t>(attention_.kv_heads);
    }

    void wake() override { pool_.wake(); }
    void rest() override { pool_.rest(); }

    /// Everything that a decode step does again: views, the split into items, the items.
    void run() override {
        std::vector<SequenceView> views;
        const std::vector<QueryBlock> blocks = make_blocks(views, out_.data());
        Attention attention(shape_, blocks, {.isa = isa_, .threads = pool_.threads()});
        std::atomic<int> next{0};
        pool_.run([&](int) {
            for (int item = next++; item < attention.items(); item = next++) attention.run(item);
        });
    }

    std::span<const float> output() const override { return out_; }

    double append_us() override {
        constexpr int kAppends = 32;
        AttentionCase attention = attention_;
        attention.context = kPageTokens * kAppends;
        attention.batch = 1;
        attention.tokens = 1;
        attention.shared = attention.ragged = false;
        Cache cache(config_of(attention, find_preset(name_)));
        const SequenceId sequence = cache.create();
        double least = -1;
        for (int append = 0; append < kAppends; ++append) {
            make_rows(attention, 0, append * kPageTokens, kPageTokens, k_.data(), v_.data());
            const AppendRows rows = append_rows(sequence, kPageTokens);
            const auto start = std::chrono::steady_clock::now();
            cache.append(0, {&rows, 1});
            const std::chrono::duration<double, std::micro> taken =
                std::chrono::steady_clock::now() - start;
            // Before the last ones nothing, or several pages, may fall due.
            if (append >= kAppends / 2 && (least < 0 || taken.count() < least))
                least = taken.count();
        }
        return least;
    }

    bool forks() const override { return attention_.shared; }
    int integer_rows() const override {
        if (!shape_.format.k.quantized()) return 0;
        return attention_.rows() * (attention_.shared ? attention_.batch : 1);
    }

    std::vector<float> expected_output(int sequence) const override {
        std::vector<SequenceView> views;
        std::vector<float> out(queries_.size());
        QueryBlock block = make_blocks(views, out.data())[static_cast<std::size_t>(sequence)];
        block.tokens = 1;
        for (const int token : judged_tokens(attention_)) {
            QueryBlock one = block;
            const std::ptrdiff_t at = token * block.q_token_stride;
            one.q += at;
            one.out += at;
            one.first_position += token;
            attention_reference(shape_, {&one, 1});
        }
        return judged_output(attention_, out, sequence);
    }

private:
    /// The first tokens of k_ and v_.
    AppendRows append_rows(SequenceId sequence, int tokens) const {
        const auto stride = static_cast<std::ptrdiff_t>(attention_.row_elements());
        AppendRows rows;
        rows.sequence = sequence;
        rows.tokens = tokens;
        rows.k = {k_.data(), RowType::f32, stride, attention_.head_dim};
        rows.v = {v_.data(), RowType::f32, stride, attention_.head_dim};
        return rows;
    }

    /// Tokens first .. end - 1.
    void append(int index, std::int64_t first, std::int64_t end, const Checkpoint& checkpoint) {
        while (first < end) {
            checkpoint();
            const std::int64_t tokens = std::min(kAppendTokens, end - first);
            make_rows(attention_, index, first, tokens, k_.data(), v_.data());
            const AppendRows rows =
                append_rows(sequences_[static_cast<std::size_t>(index)], static_cast<int>(tokens));
            cache_.append(0, {&rows, 1});
            first += tokens;
        }
    }

    /// Forks are taken of the prompt, which is all but the last token.
    void add_sequences(const Checkpoint& checkpoint) {
        const std::int64_t prompt = attention_.shared ? attention_.context - 1 : 0;
        sequences_.push_back(cache_.create());
        append(0, 0, prompt, checkpoint);
        cache_.settle(sequences_.front()); // or each fork would quantize the last chunk for itself
        for (int index = 1; index < attention_.batch; ++index)
            sequences_.push_back(attention_.shared ? cache_.fork(sequences_.front())
                                                   : cache_.create());
        for (int index = 0; index < attention_.batch; ++index) {
            append(index, prompt, attention_.context_of(index), checkpoint);
            // The state of a cache that grew token by token.
            cache_.settle(sequences_[static_cast<std::size_t>(index)]);
            const std::vector<float> queries = make_queries(attention_, index);
            queries_.insert(queries_.end(), queries.begin(), queries.end());
        }
    }

    /// One block per sequence, pointing into `views`.
    std::vector<QueryBlock> make_blocks(std::vector<SequenceView>& views, float* out) const {
        std::vector<QueryBlock> blocks(sequences_.size());
        views.resize(sequences_.size());
        const auto token_stride = static_cast<std::ptrdiff_t>(attention_.token_elements());
        for (std::size_t index = 0; index < sequences_.size(); ++index) {
            views[index] = cache_.view(0, sequences_[index]);
            QueryBlock& block = blocks[index];
            block.sequence = &views[index];
            block.q = queries_.data() + index * attention_.query_elements();
            block.out = out + index * attention_.query_elements();
            block.q_token_stride = block.out_token_stride = token_stride;
            block.q_head_stride = block.out_head_stride = attention_.head_dim;
            block.tokens = attention_.tokens;
            block.first_position = attention_.first_position(static_cast<int>(index));
        }
        return blocks;
    }

    AttentionCase attention_;
    std::string name_;
    std::string isa_;
    ThreadPool& pool_;
    Cache cache_;
    std::vector<float> k_; ///< [kAppendTokens, kv_heads, head_dim]: what is appended next
    std::vector<float> v_;
    AttentionShape shape_;
    std::vector<SequenceId> sequences_;
    std::vector<float> queries_; ///< [batch, tokens, q_heads, head_dim]
    std::vector<float> out_;     ///< the same shape
};

} // namespace

std::size_t innerkv_contender_bytes(const AttentionCase& attention, std::string_view preset) {
    return plan_cache(config_of(attention, find_preset(preset))).total() + attention.query_bytes();
}

std::unique_ptr<Contender> make_innerkv_contender(const AttentionCase& attention,
                                                  std::string_view preset, std::string_view isa,
                                                  ThreadPool& pool, const Checkpoint& checkpoint) {
    return std::make_unique<InnerkvContender>(attention, find_preset(preset), isa, pool,
                                              checkpoint);
}

} // namespace innerkv::bench
