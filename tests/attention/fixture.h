// SPDX-License-Identifier: Apache-2.0
// Sequences and queries made by hand for tests of attention. Every byte that attention must not use is
// NaN: rows beyond a run's tokens, gaps between pages, padding of queries and outputs; on demand also
// what no query of a batch sees.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "innerkv/attention.h"

namespace innerkv::test {

/// Memory aligned to 64 bytes, all bits set: NaN as fp16 and as fp32.
class Memory {
public:
    explicit Memory(std::size_t bytes);
    std::byte* data() { return data_.get(); }

private:
    struct Free {
        void operator()(std::byte* data) const;
    };
    std::unique_ptr<std::byte, Free> data_;
};

struct TransformFlags {
    bool norm = false;
    bool centre = false;
    bool rotate = false;
    bool value_centre = false;
};

/// Fills a row of `head_dim` elements of K, V or q.
using FillRow = std::function<void(std::mt19937&, std::vector<float>& row)>;
void gaussian(std::mt19937& random, std::vector<float>& row);
/// Gaussian rows times `factor`.
FillRow scaled(float factor);
FillRow constant(float value);

/// How many tokens a sequence has, and what they hold: rows as k and v fill them, times the transform's
/// norm, plus its centres.
struct SequenceSpec {
    int sink = 32;
    int quantized = 0; ///< tokens; the last page may be partly filled
    int recent = 96;
    int dropped = 0; ///< tokens missing between sink and quantized run; a multiple of 32
    /// Pages of an epoch: then transform.centre gives each epoch a centre of its own, and the quantized
    /// run begins at page `first_page` of one.
    int epoch_pages = 0;
    int first_page = 0;
    TransformFlags transform;
    FillRow k = gaussian;
    FillRow v = gaussian;
};

class Sequence {
public:
    Sequence(const PageFormat& format, int kv_heads, const SequenceSpec& spec, unsigned seed);
    /// Has the parent's pages of tokens 0 .. shared - 1, as far as they are full and of the same kind in
    /// both, its transforms and the centres of epochs that begin there. The parent must stay.
    Sequence(const Sequence& parent, std::int64_t shared, const SequenceSpec& spec, unsigned seed);
    Sequence(const Sequence&) = delete;
    const SequenceView& view() const { return view_; }
    /// What the fork and it have in common are tokens 0 .. result - 1; all of its own.
    std::int64_t shared_with(const Sequence& fork) const;
    /// Tokens that are not in `seen` [length]: NaN for fp16 rows, keys' scales and whole pages, any codes.
    void poison_unseen(const std::vector<bool>& seen);

private:
    struct Run {
        std::deque<Memory> memory;
        std::vector<std::byte*> own; ///< by page; null: the parent's
        std::vector<const std::byte*> pages;
    };
    void make_runs(const SequenceSpec& spec);
    void make_transforms(const SequenceSpec& spec);
    void make_centres(const SequenceSpec& spec);
    void make_run(int tokens, bool quantized, const SequenceSpec& spec, Run& run, PageRun& view);
    /// The parent's page at the same place in the same run, where it is shared.
    const std::byte* shared_page(const PageRun& view, int first) const;
    void poison_run(const PageFormat& stored, const std::vector<bool>& seen, Run& run,
                    const PageRun& view);

    PageFormat format_;
    int kv_heads_;
    const Sequence* parent_ = nullptr;
    std::int64_t shared_ = 0;
    std::mt19937 random_;
    std::deque<std::vector<float>> channels_;
    std::vector<KeyTransform> transforms_;
    std::deque<Memory> centres_; ///< [epochs], each [kv_heads][head_dim] fp16
    std::vector<const std::byte*> epochs_;
    Run sink_;
    Run quantized_;
    Run recent_;
    SequenceView view_;
};

/// Sequences with their queries and outputs.
struct Batch {
    AttentionShape shape;
    std::vector<QueryBlock> blocks;
    std::deque<Sequence> sequences;
    std::deque<std::vector<float>> memory;

    explicit Batch(const AttentionShape& attention_shape) : shape(attention_shape) {}

    /// The newest `tokens` tokens of a new sequence ask.
    void add(const SequenceSpec& spec, int tokens = 1, const FillRow& q = gaussian);
    /// The same of a fork of sequence `parent` that shares so many tokens with it.
    void add_fork(int parent, std::int64_t shared, const SequenceSpec& spec, int tokens = 1,
                  const FillRow& q = gaussian);
    /// Tokens that no query sees, by the shape's window and the blocks' positions, become unusable.
    void poison_unseen();

private:
    void add_queries(const Sequence& sequence, int tokens, const FillRow& q);
};

/// What attention wrote: rows [block, token, head][head_dim] and their log-sum-exps.
struct Result {
    std::vector<std::vector<float>> out;
    std::vector<float> log_sum_exp;
};

/// Poisons the outputs, lets `attend` write them and collects them.
Result collect(const Batch& batch, const std::function<void()>& attend);
Result reference(const Batch& batch);
Result attend(const Batch& batch, Arithmetic arithmetic, std::string_view isa = "scalar",
              int threads = 1);

/// Largest over rows of |difference| / |expected| (L2 norms); infinite where either is not finite.
double largest_error(const Result& result, const Result& expected);
/// The same, as the root mean square over rows.
double mean_error(const Result& result, const Result& expected);
/// Largest absolute difference of log-sum-exps; equal infinities differ by 0.
double log_sum_exp_error(const Result& result, const Result& expected);

/// Every row: zeros, and a log-sum-exp of minus infinity.
void expect_nothing_seen(const Result& result);
void expect_nan(const Result& result, std::size_t row);

std::vector<std::string_view> preset_names();

/// Codecs beyond presets that attention has to support, and presets, by name.
struct NamedFormat {
    std::string name;
    PageFormat format;
};
std::vector<NamedFormat> all_formats(int head_dim);

/// Both arithmetics against the reference, before and after what no query sees is poisoned.
void expect_close_to_reference(Batch& batch, std::string_view isa = "scalar");

/// The spec's quantized tokens; where nothing is quantized, so many more recent ones.
SequenceSpec spec_for(const PageFormat& format, int quantized);

AttentionShape shape_of(const PageFormat& format, int q_heads, int kv_heads);

} // namespace innerkv::test
