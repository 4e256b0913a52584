// SPDX-License-Identifier: Apache-2.0
// Attention on quantized and fp16 pages. Knows page layout and arithmetic, nothing of sequences or
// pools: a caller that owns its memory fills a SequenceView itself; innerkv::Cache makes one for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "innerkv/format.h"
#include "innerkv/view.h"

namespace innerkv {

/// Query rows of one sequence. Query token i stands at position first_position + i and sees every
/// cached token at a position <= its own that its sliding window reaches. A row of q with an element
/// that is not finite (or beyond 1e30 once it is transformed and scaled) gets NaN in out and log_sum_exp,
/// unless it sees no token; other rows are not affected.
struct QueryBlock {
    const SequenceView* sequence = nullptr;
    const float* q = nullptr;          ///< [tokens, q_heads, head_dim], last dimension contiguous
    float* out = nullptr;              ///< the same shape
    float* log_sum_exp = nullptr;      ///< [tokens, q_heads], natural log; optional
    std::ptrdiff_t q_token_stride = 0; ///< in elements
    std::ptrdiff_t q_head_stride = 0;
    std::ptrdiff_t out_token_stride = 0;
    std::ptrdiff_t out_head_stride = 0;
    std::int64_t first_position = 0;
    int tokens = 1;
};

struct AttentionShape {
    int q_heads = 0;
    int kv_heads = 0;       ///< divides q_heads
    PageFormat format;      ///< of the quantized run; f16 where nothing is quantized
    float scale = 0.0f;     ///< of the logits; 0 means 1 / sqrt(head_dim)
    float soft_cap = 0.0f;  ///< logits become soft_cap * tanh(logit / soft_cap); 0: off
    int sliding_window = 0; ///< a query sees the newest so many positions, its own included; 0: all
};

enum class Arithmetic : std::uint8_t {
    integer, ///< int8 queries and uint8 probabilities per group of 32
    exact    ///< fp32 on dequantized codes, for tests and measurements of quality
};

struct AttentionOptions {
    Arithmetic arithmetic = Arithmetic::integer;
    /// "scalar", "avx2", ...; empty: the environment variable INNERKV_ISA, read once, then the best.
    std::string_view isa = {};
    /// How many threads will take items: the context is split so that each has work.
    int threads = 1;
};

/// Instruction sets this build has and this processor runs, best first.
std::vector<std::string_view> available_isas();
/// The one that `isa` asks for, as in AttentionOptions. Throws InvalidArgument naming those there are.
std::string_view select_isa(std::string_view isa = {});

/// Attention of one layer for a batch of query blocks, split into independent work items.
///
/// Construction checks every argument (InvalidArgument; unknown instruction sets too) and splits the
/// work into (sequences, KV head, page range) items; it allocates. Sequences that have pages in common
/// (forks of one prompt: the same pointers, centres and transforms) are read together there. Then each item
/// must be run exactly once, in any order, from any thread; the item that finishes a head's last part merges
/// it into `out`.
/// An item takes up to 150 KiB of stack. Views, queries and outputs must stay valid and unchanged until
/// the last item has run.
///
/// With Arithmetic::integer an output is within about 1% of attention on the dequantized contents
/// (L2 norm; logits that spread by 1), more where logits spread further: docs/kernels.md has the figures.
/// Quantized pages then give the same bits on every instruction set. fp16 windows and Arithmetic::exact
/// differ by fp32 rounding, and so does a different number of threads, which splits sums elsewhere.
class Attention {
public:
    Attention(const AttentionShape& shape, std::span<const QueryBlock> blocks,
              const AttentionOptions& options = {});
    ~Attention();
    Attention(Attention&&) noexcept;
    Attention& operator=(Attention&&) noexcept;

    int items() const;
    void run(int item) noexcept;
    /// Runs every item on the calling thread.
    void run_all() noexcept;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

/// The fp64 reference on dequantized contents: what every kernel is tested against.
void attention_reference(const AttentionShape& shape, std::span<const QueryBlock> blocks);

/// Merges two attention states over disjoint tokens, in place into the first: out [head_dim] with its
/// log-sum-exp. A state over no tokens has log-sum-exp minus infinity and out 0.
void merge_attention(std::span<float> out, float& log_sum_exp, std::span<const float> other_out,
                     float other_log_sum_exp);

} // namespace innerkv
