// SPDX-License-Identifier: Apache-2.0
// One append to one layer: planned and given its pages at once, written per KV head by run(), made
// visible by commit(). Everything is written to fresh pages or to rows nobody sees yet, so dropping
// it undoes it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/pool.h"
#include "cache/rows.h"
#include "cache/state.h"

namespace innerkv::paging {

/// New rows that go to one page.
struct PageWrite {
    std::byte* page = nullptr; ///< page group
    int first_row = 0;
    int first_token = 0; ///< of the rows given
    int tokens = 0;
};

/// One sequence's share of an append.
struct SequenceAppend {
    SequenceAppend(CacheState& cache, int layer, const AppendRows& new_rows,
                   LayerState& layer_state)
        : rows(new_rows), state(&layer_state), quantized_pages(cache.quantized_pool(layer)),
          f16_pages(cache.f16_pool), centres(cache.centre_pool) {}

    AppendRows rows;
    LayerState* state;
    SettlePlan settle;
    std::int64_t new_sink_pages = 0;
    std::int64_t new_recent_pages = 0;
    int first_query = 0; ///< of the rows given, whose squares are added to the sequence's
    int queries = 0;
    int copied_rows = 0; ///< of a shared partial page, which is replaced by a copy; 0: none
    PageHold quantized_pages;
    PageHold f16_pages; ///< the copy if there is one, sink pages, recent pages
    PageHold centres;   ///< of settle.new_epochs
    std::vector<PageWrite> writes;
    std::shared_ptr<LayerTransform> calibration; ///< null unless settle.calibrate
    std::shared_ptr<QueryPower> query_power;     ///< those of the state and the new ones
};

class LayerAppend {
public:
    /// Throws InvalidArgument or OutOfPages before anything has changed.
    LayerAppend(CacheState& cache, int layer, std::span<const AppendRows> batch);
    /// Settles one sequence, also where exact_prefill has held it back.
    LayerAppend(CacheState& cache, int layer, SequenceId sequence);
    ~LayerAppend();
    LayerAppend(const LayerAppend&) = delete;
    LayerAppend& operator=(const LayerAppend&) = delete;

    int parts() const { return cache_.config.kv_heads; }
    void run(int part);
    /// False, and nothing happens, unless every part has run to its end, or once committed.
    [[nodiscard]] bool commit() noexcept;
    /// All parts and the commit on the calling thread.
    void finish();

private:
    void check_batch(std::span<const AppendRows> batch) const;
    void check_queries(const AppendRows& rows) const;
    void plan(const AppendRows& rows, bool settles);
    void take_pages(const std::string& what);
    void prepare(SequenceAppend& append);
    void place_rows(SequenceAppend& append) const;
    void store_side(const SequenceAppend& append, Side side, int head) const;
    void settle_head(const SequenceAppend& append, int head) const;
    void make_centres(const SequenceAppend& append, int head) const;
    const std::byte* centres_of(const SequenceAppend& append, std::int64_t grid_page) const;
    /// Where a KV head begins in QueryPower.
    std::ptrdiff_t query_offset(int head) const;
    void add_queries(const SequenceAppend& append, int head) const;
    void store_head(const SequenceAppend& append, int head) const;
    void commit_settle(SequenceAppend& append) noexcept;
    void commit_rows(SequenceAppend& append) noexcept;

    CacheState& cache_;
    int layer_;
    const LayerRule& rule_;
    PageFormat format_; ///< of the layer's quantized pages
    std::vector<SequenceAppend> appends_;
    std::vector<std::uint8_t> done_; ///< [parts]
    bool pending_ = false;
};

} // namespace innerkv::paging
