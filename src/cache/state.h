// SPDX-License-Identifier: Apache-2.0
// What a cache holds: pools, sequences and, per sequence and layer, four lists of pages. Operations
// on it are in append, truncate and reserve.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/page_list.h"
#include "cache/pool.h"
#include "cache/rules.h"
#include "innerkv/cache.h"

namespace innerkv::paging {

/// Norm and value centres of one sequence in one layer: written once, by calibration, then shared by forks.
struct LayerTransform {
    std::vector<float> values;       ///< what the pointers in `heads` point to
    std::vector<KeyTransform> heads; ///< [kv_heads]
};

/// Sums over query heads and tokens of q^2, [kv_heads, head_dim].
using QueryPower = std::vector<float>;

/// One sequence in one layer; `quantized` has quantized_pages() pages.
struct LayerState : LayerExtent {
    PageList sink;
    PageList quantized;
    PageList recent;
    PageList centres; ///< of the epochs that LayerRule::epochs tells
    std::shared_ptr<const LayerTransform> transform;
    std::shared_ptr<const QueryPower>
        queries; ///< of the calibration tokens, until there is a transform

    /// Filled rows of the last page, 0 where it is full or there is none.
    int partial_rows(const LayerRule& rule) const;
    /// The list that the last page is in, when it is partial.
    PageList& last_list(const LayerRule& rule);
    const PageList& last_list(const LayerRule& rule) const;
};

struct SequenceState {
    std::vector<LayerState> layers;
    /// False while exact_prefill keeps everything in fp16.
    bool settles = true;
};

/// Groups of each pool.
struct PoolCapacity {
    std::vector<std::int64_t> quantized_pages; ///< [PageClasses::group_bytes]; empty: none
    std::int64_t f16_pages = 0;
    std::int64_t centres = 0;
};

struct CacheState {
    explicit CacheState(CacheConfig checked_config);

    /// Throw InvalidArgument: unknown sequences, layers out of range, pending appends.
    SequenceState& sequence(SequenceId id);
    const SequenceState& sequence(SequenceId id) const;
    const LayerRule& rule(int layer) const;
    void check_layer(int layer) const;
    void check_not_pending(const char* operation) const;

    SequenceId create();
    SequenceId fork(SequenceId parent);
    void remove(SequenceId id);
    void reserve(SequenceId id, int tokens) const;
    void truncate(std::span<const Truncation> batch);
    void settle(SequenceId id);
    SequenceView view(int layer, SequenceId id) const;
    CacheUsage usage() const;

    /// Transforms that the pages of this layer went through; empty: identity, or nothing quantized yet.
    std::span<const KeyTransform> transforms(int layer, const LayerState& state) const;
    /// Centres of the quantized run.
    CentreRun centres(int layer, const LayerState& state) const;
    /// Of the layer's quantized pages.
    Pool& quantized_pool(int layer) { return *quantized_pools[class_of(layer)]; }
    const Pool& quantized_pool(int layer) const { return *quantized_pools[class_of(layer)]; }
    std::size_t class_of(int layer) const {
        return classes.of_layer[static_cast<std::size_t>(layer)];
    }
    /// Throws OutOfPages unless the pools have so many free groups. `what` begins the message.
    void check_free(const std::string& what, const PoolCapacity& needed) const;

    CacheConfig config;
    std::vector<float> calibrated_values; ///< what the pointers in config.calibrated point to
    std::vector<KeyTransform> rotation;   ///< [kv_heads]; where the rotation is all there is
    std::vector<LayerRule> rules;         ///< [layers]
    PageClasses classes;
    std::vector<std::unique_ptr<Pool>> quantized_pools; ///< [classes]
    Pool f16_pool;
    Pool centre_pool;
    std::map<SequenceId, SequenceState> sequences;
    std::vector<int> pending; ///< [layers], appends begun and not yet committed or dropped
    std::int32_t next_id = 0;

private:
    std::int64_t truncate_need(const Truncation& cut);
    std::span<const Page> cut(const Truncation& cut, std::span<const Page> fresh);
    /// Free groups that settling one layer after the other needs: what a layer drops, the next may take.
    PoolCapacity settle_need(const SequenceState& target) const;
    SequenceId new_id();
    void check_sequence_count() const;
};

/// Of one sequence in one layer, besides pages and their tables.
std::size_t layer_state_bytes(const CacheConfig& config);

/// Throw InvalidArgument naming the fault: in what one sequence looks like, and in all of a config.
void validate_layout(const CacheConfig& config);
void validate_config(const CacheConfig& config);
/// Of a sequence in a valid layout.
void validate_length(const CacheConfig& config, std::int64_t length);

/// Copies what config.calibrated points to and lets it point to the copy.
std::vector<float> adopt_calibrated(CacheConfig& config);

/// That the pools are made for.
PoolCapacity pool_capacity(const CacheConfig& config);

/// Throws OutOfPages unless the pool has so many free groups. `what` begins the message, `kind` names the groups.
void check_free(const std::string& what, const char* kind, const Pool& pool, std::int64_t groups);
inline constexpr const char* kQuantizedPages = "quantized pages";
inline constexpr const char* kF16Pages = "fp16 pages";
inline constexpr const char* kCentres = "centres";

} // namespace innerkv::paging
