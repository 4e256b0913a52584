// SPDX-License-Identifier: Apache-2.0
// innerkv::Cache with one sequence.
#pragma once

#include <optional>

#include "kv_store.h"

namespace innerkv::runner {

class CacheStore final : public KvStore {
public:
    /// One step a chunk for caches that quantize nothing in between.
    CacheStore(const CacheConfig& config, const SessionOptions& options);

    PageFormat format(int layer) const override { return cache_.config().layer_format(layer); }
    int step(std::int64_t position, int tokens) const override;
    void reserve(int tokens) override { cache_.reserve(sequence_, tokens); }
    int start_append(int layer, const AppendRows& rows) override;
    void run_part(int part) override { append_->run(part); }
    void commit() override;
    void drop() noexcept override { append_.reset(); }
    SequenceView view(int layer) const override { return cache_.view(layer, sequence_); }
    void settle() override { cache_.settle(sequence_); }
    void truncate(std::int64_t length) override { cache_.truncate(sequence_, length); }
    void clear() override;
    CacheReport report(std::int64_t length) const override;

private:
    Cache cache_;
    SequenceId sequence_;
    bool whole_chunks_;
    bool queries_; ///< shown to the cache
    std::optional<Append> append_;
};

} // namespace innerkv::runner
