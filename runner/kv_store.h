// SPDX-License-Identifier: Apache-2.0
// Where the keys and values of one sequence live, as attention in a graph sees it: our cache, or a
// simulation of somebody else's.
#pragma once

#include <cstdint>

#include "innerkv/cache.h"
#include "innerkv/view.h"
#include "runner/runner.h"

namespace innerkv::runner {

class KvStore {
public:
    KvStore() = default;
    KvStore(const KvStore&) = delete;
    KvStore& operator=(const KvStore&) = delete;
    virtual ~KvStore() = default;

    /// Of the quantized pages that view() shows of a layer.
    virtual PageFormat format(int layer) const = 0;
    /// How many of `tokens` tokens at `position` may be appended at once, so that each meets the history
    /// that it would meet if it came alone.
    virtual int step(std::int64_t position, int tokens) const = 0;

    /// Throws unless appends of so many tokens in all cannot run out of memory.
    virtual void reserve(int tokens) = 0;
    /// One append to one layer, fp32 rows, of the store's own sequence; returns its parts, which threads
    /// may share.
    virtual int start_append(int layer, const AppendRows& rows) = 0;
    virtual void run_part(int part) = 0;
    /// Makes the append visible.
    virtual void commit() = 0;
    /// Ends an append that was not committed; without one nothing happens.
    virtual void drop() noexcept = 0;
    /// Valid until the next append to that layer.
    virtual SequenceView view(int layer) const = 0;

    /// The prompt is complete.
    virtual void settle() = 0;
    virtual void truncate(std::int64_t length) = 0;
    virtual void clear() = 0;
    virtual CacheReport report(std::int64_t length) const = 0;
};

} // namespace innerkv::runner
