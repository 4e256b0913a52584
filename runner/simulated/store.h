// SPDX-License-Identifier: Apache-2.0
// A simulated cache: fp16 pages whose rows are rounded to what another cache would give back, at the
// moment when it would. Nothing is packed, and no memory is saved: the report tells what would be.
#pragma once

#include <memory>
#include <new>
#include <vector>

#include "codecs.h"
#include "runner/kv_store.h"

namespace innerkv::runner::simulated {

/// A side's window in fp16, counted at the moment a token attends, that token included: rows behind the
/// first `sink` and before the newest `keep` are rounded, whole steps of so many tokens at a time.
struct Window {
    int sink = 0;
    int keep = 0; ///< 0: a row is rounded before its own token attends to it
    int step = 1;

    /// Nothing is ever fp16.
    bool at_once() const { return sink == 0 && keep == 0 && step == 1; }
    /// Rows from `sink` to here are rounded when the last of `length` tokens attends.
    std::int64_t end(std::int64_t length) const {
        const std::int64_t behind = length - sink - keep;
        return sink + (behind > 0 ? behind / step * step : 0);
    }
};

/// Keys or values of a simulated cache: a codec, and when it is applied.
struct Side {
    CodecPtr codec;
    Window window;
};

struct Definition {
    Side k;
    Side v;
    bool llama_order = false; ///< key channels are grouped in llama.cpp's order, see interleaved()
};

/// Sliding windows drop nothing here: attention skips what they do not reach. Rows that are rounded later
/// than they come are kept as they were, so that any length can be returned to exactly.
class Store final : public KvStore {
public:
    /// Throws InvalidArgument where the cache does not support the model's head dimension.
    Store(const ModelInfo& info, Definition cache);

    PageFormat format(int) const override { return format(); }
    int step(std::int64_t position, int tokens) const override;
    void reserve(int tokens) override;
    int start_append(int layer, const AppendRows& rows) override;
    void run_part(int part) override;
    void commit() override;
    void drop() noexcept override;
    SequenceView view(int layer) const override;
    void settle() override {}
    void truncate(std::int64_t length) override;
    void clear() override;
    CacheReport report(std::int64_t length) const override;

private:
    struct FreePage {
        void operator()(std::byte* page) const {
            ::operator delete[](page, std::align_val_t{kPageAlignment});
        }
    };
    /// Rows behind the sink and before these are rounded.
    struct Rounded {
        std::int64_t k = 0;
        std::int64_t v = 0;
    };
    using Page = std::unique_ptr<std::byte[], FreePage>; ///< of all KV heads
    struct Layer {
        std::vector<Page> pages;
        std::vector<Page> originals; ///< without rounding; empty where rows are rounded at once
        std::vector<const std::byte*> table; ///< of pages
        std::int64_t length = 0;
        Rounded rounded;
        int sliding_window = 0; ///< 0: none
    };
    struct Pending {
        Layer* layer = nullptr;
        int tokens = 0;
        Rows k;
        Rows v;
    };

    PageFormat format() const { return {kF16, kF16, head_dim_}; }
    Page make_page() const;
    bool keeps_originals() const;
    std::uint16_t* row(const std::vector<Page>& pages, int head, bool keys,
                       std::int64_t token) const;
    void store(int head, bool keys) const;
    void round(int head, bool keys) const;
    void restore(const Layer& layer, bool keys, std::int64_t begin,
                 std::int64_t end) const noexcept;
    Rounded due(std::int64_t length) const;

    Definition cache_;
    int kv_heads_;
    int head_dim_;
    std::vector<Layer> layers_;
    Pending append_;
};

} // namespace innerkv::runner::simulated
