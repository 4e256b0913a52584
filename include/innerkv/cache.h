// SPDX-License-Identifier: Apache-2.0
// The KV cache of a model: many sequences over one pool of pages. It moves rows and pages and counts
// them; arithmetic on codes is in codec.h and attention.h.
//
// Tokens of a sequence, per layer and in order: the sink window (fp16), quantized pages of 32 tokens,
// the recent window (fp16). An append first settles the sequence: while the recent window holds at
// least recent_tokens + 32 tokens, its oldest page is quantized. Then it stores the new rows as fp16.
// So a prompt chunk attends unquantized to itself, a later one to the quantized history; and since
// settling happens at page boundaries only, appending a prompt in steps that end at multiples of 32
// tokens behind the sink gives exactly the pages that appending it token by token gives.
//
// A layer with a sliding window drops, when it settles, the pages that no later query sees, sink
// included; pages that would be dropped before they are old enough to be quantized never are.
//
// Threads: calls of Cache, Append::commit and an Append's destruction must not overlap, in any of
// their combinations. Append::run may overlap with runs of other parts, of the same append or another.
// Views may be read by any number of threads while nothing that ends them is called.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "innerkv/format.h"
#include "innerkv/view.h"

namespace innerkv {

enum class SequenceId : std::int32_t {};

enum class RowType : std::uint8_t { f32, f16, bf16 };

/// Rows of K or V, [tokens, kv_heads, head_dim], last dimension contiguous; strides in elements. They
/// must be at least head_dim (a stride that is never taken may be anything).
struct Rows {
    const void* data = nullptr;
    RowType type = RowType::f32;
    std::ptrdiff_t token_stride = 0;
    std::ptrdiff_t head_stride = 0;
};

/// Which steps key and value rows take on their way into a page (view.h, KeyTransform), and where norm
/// and centres come from. In order: subtract the centre, divide by the norm, rotate; so where there are
/// both, the norm is taken from centred keys, k = K - mean. Per KV head and channel c, over the calibration
/// tokens t:
///
///     prefill     n_c = sqrt(max_t |k[t,c]|), 1 where that is 0
///     balanced    r_c = (sum_t k[t,c]^2 / sum_t q[t,c]^2)^(1/4), over all query heads of the KV head;
///                 n_c = r_c / (median of r), brought closer to 1 by a factor of up to 1.4; within
///                 1/4096 .. 4096; 1 where a sum is 0
///       without queries, and m_c = max_t |k[t,c]|, M = 4 * (median of m):
///                 n_c = max(1, m_c / M): outliers come down to where being one begins
///
/// Rotation gives every channel of a row the same rounding error e, and the logit one of
/// |e| * |q n|, where |e| goes with |k / n|. The product is least at n_c^2 = |k_c| / |q_c|
/// (Cauchy-Schwarz), and then a model whose keys are f times as large in some channels, and its queries
/// 1/f, quantizes as well as before. Small imbalances are left alone: 128 tokens do not tell
/// them well. Medians are the lower of two, over channels above 0.
///
/// Transformed values beyond fp16 saturate.
struct TransformPolicy {
    KeyNormPolicy norm = KeyNormPolicy::none;
    /// Subtract a mean key, per channel: of the epoch that the page belongs to. The keys' mean drifts with
    /// the topic and, after RoPE, with the position.
    bool centre = false;
    bool rotate = false;       ///< Hadamard, of keys and of values
    bool value_centre = false; ///< subtract the mean value, per channel
    /// Norm and value centre are taken from this many tokens behind the sink, per sequence, layer and
    /// KV head. Until they are there (and the recent window beside them) nothing is quantized and no
    /// sliding window drops a page; so they do not depend on how a prompt was cut. They stay for the
    /// life of the sequence and its forks, also where truncate() takes those tokens away. (Until the norm
    /// is taken, queries of tokens that truncate() takes away count as well, unless it goes back to the sink.)
    int calibration_tokens = 128;
    /// Tokens of an epoch, a multiple of 32; epochs follow each other from the sink's end on. An epoch's
    /// centre is the mean of the recent_tokens + 32 tokens from its first on, which are all fp16 when its
    /// first page is quantized: so it does not depend on how tokens came. Rounded to fp16.
    int centre_epoch = 256;
    /// A prefill norm whose max / min over channels is below this is dropped.
    float norm_threshold = 1.2f;

    static TransformPolicy from_preset(const Preset& preset);
    friend bool operator==(const TransformPolicy&, const TransformPolicy&) = default;
};

/// Key norms of one KV head from its keys alone, in place: `channels`, [head_dim], has the m_c of TransformPolicy
/// and gets the n_c that it has without queries. Throws InvalidArgument for more channels than a head may have.
void norms_from_magnitudes(std::span<float> channels);

/// Of KeyNormPolicy::calibrated: fp16's smallest number, below which a norm would only amplify what fp16
/// cannot hold.
inline constexpr float kSmallestNorm = 0x1p-24f;

/// Counts may be up to 2^24 each, tokens up to 2^40.
struct CacheConfig {
    int layers = 0;
    int kv_heads = 0;
    PageFormat format; ///< of a settled page; f16 codecs: nothing is ever quantized
    /// Precision by layer, [layers]: codecs in place of format's, which must be quantized, as these must. Empty: every
    /// layer has format's.
    std::vector<LayerCodecs> layer_codecs;
    int sink_tokens = 32;
    int recent_tokens = 96; ///< a multiple of 32
    TransformPolicy transform;
    /// Per layer: tokens older than this are dropped once their page is wholly outside; 0: none.
    /// Empty: no layer has a window.
    std::vector<int> sliding_window;
    /// Per layer and KV head, [layers * kv_heads]; for KeyNormPolicy::calibrated, which takes all steps
    /// from here: the policy's centre, rotate and value_centre must then be false. Copied. Norms lie in
    /// kSmallestNorm .. 65504, centres within 65504.
    std::vector<KeyTransform> calibrated;
    std::int64_t max_tokens = 0; ///< over all sequences: what the pool is sized for
    int max_sequences = 1;
    /// Tokens that one append may bring to a sequence (a prompt chunk): sizes the fp16 pool, together
    /// with appends to one layer at a time. Larger appends work as long as there are free pages.
    int max_append = 512;
    /// Keep a whole prompt in fp16 until settle() is called, once per sequence and its later forks (the
    /// paper's prefill); sizes the fp16 pool so.
    bool exact_prefill = false;

    static CacheConfig from_preset(const Preset& preset, int layers, int kv_heads, int head_dim);

    /// Of a layer's settled pages; `layer` is in range.
    PageFormat layer_format(int layer) const;
    /// PageFormat::bits_per_value, the mean over layers.
    double bits_per_value() const;
};

/// Bytes, known before anything is allocated. Page tables are counted once a page: forks have tables of
/// their own for shared pages, and a table that grows has up to twice the room it needs.
struct CachePlan {
    std::size_t quantized_bytes = 0; ///< pool of quantized pages
    std::size_t f16_bytes = 0;       ///< pool of windows and prompt chunks
    std::size_t centre_bytes = 0;    ///< pool of key centres
    std::size_t other_bytes = 0;     ///< page tables, norms, value centres, ends of chunks of pages
    std::size_t total() const { return quantized_bytes + f16_bytes + centre_bytes + other_bytes; }
};

/// What the pools hold for a config; see also plan.h for the steady state of one sequence.
CachePlan plan_cache(const CacheConfig& config);

struct CacheUsage {
    std::int64_t quantized_pages = 0; ///< in use, each [kv_heads] pages of one layer
    std::int64_t f16_pages = 0;
    std::size_t bytes_in_use = 0;   ///< pages in use, windows and transforms counted
    std::size_t bytes_reserved = 0; ///< allocated for pages; resident once written
};

class Cache;

/// One append to one layer, split so that threads can share it. Made by Cache::begin_append. Until it is
/// committed or dropped, the cache refuses another append to that layer and every change of a sequence;
/// view() and length() show the layer as it was. Dropped without commit, it never happened. Must not
/// outlive the cache; the rows must stay until it has run.
class Append {
public:
    ~Append();
    Append(Append&&) noexcept;
    Append& operator=(Append&&) noexcept;

    int parts() const; ///< one per KV head
    /// Settles and stores one KV head. Throws InvalidArgument at a value that is not finite (or
    /// beyond fp16), or after commit(); distinct parts may run at once.
    void run(int part);
    /// Makes the append visible. False, and nothing happens, where a part has not run to its end (run
    /// it, or drop the append) and where it was committed before.
    [[nodiscard]] bool commit() noexcept;

private:
    friend class Cache;
    struct Impl;
    explicit Append(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

/// Rows that one append brings to one sequence.
struct AppendRows {
    SequenceId sequence{};
    int tokens = 0;
    Rows k;
    Rows v;
    /// Queries of these tokens, [tokens, q_heads, head_dim], for KeyNormPolicy::balanced; other policies
    /// do not look at them. Without data there are none. q_heads is a multiple of kv_heads.
    Rows q = {};
    int q_heads = 0;
};

/// What truncate() keeps of one sequence: the first `length` tokens of every layer.
struct Truncation {
    SequenceId sequence{};
    std::int64_t length = 0;
};

class Cache {
public:
    /// Throws InvalidArgument where the config is not supported, std::bad_alloc where memory is short.
    explicit Cache(CacheConfig config);
    ~Cache();
    Cache(Cache&&) noexcept;
    Cache& operator=(Cache&&) noexcept;

    const CacheConfig& config() const;

    /// A new empty sequence. Throws OutOfPages at max_sequences.
    SequenceId create();
    /// A sequence with the same contents; pages are shared until one of the two writes to them or
    /// quantizes them. It keeps the parent's transforms. Throws OutOfPages at max_sequences.
    SequenceId fork(SequenceId sequence);
    void remove(SequenceId sequence);

    /// Throws OutOfPages unless `tokens` more tokens fit into every layer; after it returned, appends
    /// of so many tokens in all (max_append at most in each, one layer at a time) cannot run out of
    /// pages as long as no other sequence takes any. Changes nothing.
    void reserve(SequenceId sequence, int tokens);

    /// Checks, then takes the pages an append needs: OutOfPages or InvalidArgument leave the cache as
    /// it was. A batch names each sequence once.
    Append begin_append(int layer, std::span<const AppendRows> batch);
    /// All parts and the commit on the calling thread; strong guarantee.
    void append(int layer, std::span<const AppendRows> batch);

    /// Keeps the first `length` tokens in every layer. Inside a quantized page, the page's remaining
    /// tokens are dequantized back into the recent window, rounded to fp16; OutOfPages where that needs
    /// an fp16 page (after a fork) and none is free. InvalidArgument where a sliding window has already
    /// dropped tokens that the shorter sequence needs; 0 always works. Layers shorter than `length`
    /// stay. The cache is as it was after either.
    void truncate(SequenceId sequence, std::int64_t length);
    /// All of a batch, which names each sequence once, or none.
    void truncate(std::span<const Truncation> batch);

    /// With exact_prefill: the prompt is complete, quantize what lies outside the windows, in every
    /// layer. Otherwise settles early what the next append would. OutOfPages leaves it as it was; after
    /// std::bad_alloc some layers may have settled, and another call goes on with the others.
    void settle(SequenceId sequence);

    std::int64_t length(SequenceId sequence, int layer) const;
    /// What attention needs; valid until the next change of that sequence or layer.
    SequenceView view(int layer, SequenceId sequence) const;

    CacheUsage usage() const;

private:
    friend class Append;
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace innerkv
