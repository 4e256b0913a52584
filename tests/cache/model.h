// SPDX-License-Identifier: Apache-2.0
// A simple model of the cache: every row as it was given, and the windows' rules as loops over pages.
// It predicts which pages there are, what each holds, which are shared, and when the pool is too small.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "innerkv/cache.h"
#include "test_rows.h"

namespace innerkv::test {

/// A page group that lives as long as some sequence refers to it.
struct ModelPage {
    explicit ModelPage(std::int64_t& count) : alive(&count) { ++count; }
    ~ModelPage() { --*alive; }
    ModelPage(const ModelPage&) = delete;
    ModelPage& operator=(const ModelPage&) = delete;

    std::int64_t* alive;
    std::vector<std::byte> bytes; ///< of a quantized page, once it has been compared with its rows
};
using ModelPagePtr = std::shared_ptr<ModelPage>;

/// Norm and centres of one KV head in double precision; empty: absent.
struct ModelTransform {
    std::vector<double> norm;
    std::vector<double> centre;
    std::vector<double> value_centre;
    bool norm_is_close = false; ///< max / min is too close to the threshold to predict
    bool rotate = false;
};

struct ModelToken {
    std::vector<std::uint16_t> k; ///< fp16 bits, [kv_heads, head_dim]
    std::vector<std::uint16_t> v;
};

/// Keys' centres of one epoch, [kv_heads * head_dim]; lives as long as some sequence refers to it.
struct ModelCentre {
    explicit ModelCentre(std::int64_t& count) : alive(&count) { ++count; }
    ~ModelCentre() { --*alive; }
    ModelCentre(const ModelCentre&) = delete;
    ModelCentre& operator=(const ModelCentre&) = delete;

    std::int64_t* alive;
    std::vector<double> values; ///< exact, until the cache's rounded ones have been compared
    bool compared = false;
};

struct ModelLayer {
    std::vector<ModelToken> tokens; ///< all that were ever kept; dropped ones stay here unused
    std::vector<ModelPagePtr> sink;
    std::vector<ModelPagePtr> quantized;
    std::vector<ModelPagePtr> recent;
    int sink_dropped = 0; ///< pages
    std::int64_t quantized_first = 0;
    std::int64_t recent_first = 0;
    /// [kv_heads]; null until calibrated, or where there is none. Forks share it.
    std::shared_ptr<std::vector<ModelTransform>> transform;
    std::map<std::int64_t, std::shared_ptr<ModelCentre>> centres; ///< by epoch
    std::vector<double>
        query_power; ///< [kv_heads * head_dim], until calibrated; empty: no queries came

    std::int64_t length() const { return static_cast<std::int64_t>(tokens.size()); }
};

struct ModelSequence {
    std::vector<ModelLayer> layers;
    bool settles = true;
};

/// Pages an operation takes before it gives any back.
struct ModelNeed {
    std::map<std::size_t, std::int64_t> quantized; ///< by the bytes of a page
    std::int64_t f16 = 0;
    std::int64_t centres = 0;
    bool copies = false; ///< the last page is partly filled and shared

    ModelNeed& operator+=(const ModelNeed& other);
};

class Model {
public:
    explicit Model(const CacheConfig& config);

    void create(SequenceId id);
    void fork(SequenceId parent, SequenceId child);
    void remove(SequenceId id) { sequences.erase(id); }

    ModelNeed append_need(SequenceId id, int layer, int tokens) const;
    /// `copies` as append_need said before any sequence of the batch changed.
    /// Without queries q is null.
    void append(SequenceId id, int layer, const TestRows& k, const TestRows& v, const TestRows* q,
                bool copies);
    ModelNeed settle_need(SequenceId id) const;
    void settle(SequenceId id);
    /// False where a sliding window has dropped what the shorter sequence needs.
    bool can_truncate(SequenceId id, std::int64_t length) const;
    ModelNeed truncate_need(SequenceId id, std::int64_t length) const;
    /// Rows that come back from a quantized page are compared with their originals within the codec's
    /// bound and then replace them; so this follows the cache's own truncate.
    void truncate(SequenceId id, std::int64_t length, const Cache& cache);

    bool fits(const ModelNeed& need) const;
    /// Compares everything; reports through GoogleTest.
    void compare(const Cache& cache);

    std::map<SequenceId, ModelSequence> sequences;

private:
    struct Settling {
        int drop_sink = 0;
        int drop_quantized = 0;
        int drop_recent = 0;
        int quantize = 0;
        bool calibrate = false;
    };
    Settling settling(const ModelLayer& layer, int index) const;
    void apply(const Settling& settling, ModelLayer& layer, int index);
    bool has_epochs(int index) const;
    /// Epochs without a centre that get one.
    std::vector<std::int64_t> new_epochs(const Settling& settling, const ModelLayer& layer,
                                         int index) const;
    std::shared_ptr<ModelCentre> centre_of(const ModelLayer& layer, std::int64_t epoch);
    void drop_centres(ModelLayer& layer) const;
    ModelTransform calibrate_head(const ModelLayer& layer, int head) const;
    void balance(const ModelLayer& layer, int head, ModelTransform& transform) const;
    void add_queries(ModelLayer& layer, const TestRows& q, int token) const;
    PageFormat format(int index) const;
    std::size_t page_bytes(int index) const { return format(index).page_bytes(); }
    bool quantizes(int index) const;
    bool calibrates(int index) const;
    int window(int index) const;
    bool starts_page(std::int64_t position) const;
    ModelPagePtr new_f16_page();
    void cut_layer(ModelLayer& layer, std::int64_t length, int index, SequenceId id,
                   const Cache& cache);

    void compare_usage(const Cache& cache) const;
    void compare_layer(const Cache& cache, SequenceId id, int index, ModelLayer& layer);
    void compare_f16(const PageRun& run, const ModelLayer& layer,
                     const std::vector<ModelPagePtr>& pages);
    void compare_quantized(const PageRun& run, ModelLayer& layer, int index);
    void compare_transforms(const SequenceView& view, ModelLayer& layer, int index) const;
    void compare_centres(const CentreRun& centres, ModelLayer& layer, int index) const;
    void compare_page(const std::byte* group, const ModelLayer& layer, int index,
                      std::int64_t first) const;
    void adopt_cut_page(const PageRun& run, ModelLayer& layer, int index, std::int64_t first,
                        int kept) const;
    void note_page(const std::byte* data, const ModelPagePtr& page);
    /// Of the page at grid token `first`.
    ModelTransform transform_of(const ModelLayer& layer, int head, std::int64_t first) const;

    CacheConfig config_;
    std::map<std::size_t, std::int64_t> quantized_alive_; ///< by the bytes of a page
    std::int64_t f16_alive_ = 0;
    std::map<std::size_t, std::int64_t> quantized_capacity_;
    std::int64_t f16_capacity_ = 0;
    std::int64_t centres_alive_ = 0;
    std::int64_t centre_capacity_ = 0;
    std::map<const std::byte*, const ModelPage*> page_at_; ///< while comparing
};

} // namespace innerkv::test
