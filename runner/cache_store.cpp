// SPDX-License-Identifier: Apache-2.0
#include "cache_store.h"

#include <algorithm>
#include <stdexcept>

#include "engine.h"
#include "innerkv/plan.h"

namespace innerkv::runner {

CacheStore::CacheStore(const CacheConfig& config, const SessionOptions& options)
    : cache_(config), sequence_(cache_.create()), whole_chunks_(whole_chunks(options)),
      queries_(options.queries) {}

/// Steps end at page boundaries behind the sink.
int CacheStore::step(std::int64_t position, int tokens) const {
    if (whole_chunks_) {
        return tokens;
    }
    const std::int64_t behind_sink = position - cache_.config().sink_tokens;
    const std::int64_t in_page = ((behind_sink % kPageTokens) + kPageTokens) % kPageTokens;
    return std::min(tokens, static_cast<int>(kPageTokens - in_page));
}

int CacheStore::start_append(int layer, const AppendRows& rows) {
    AppendRows batch[] = {rows};
    batch[0].sequence = sequence_;
    if (!queries_) {
        batch[0].q = {};
    }
    append_.emplace(cache_.begin_append(layer, batch));
    return append_->parts();
}

void CacheStore::commit() {
    if (!append_->commit()) {
        throw std::logic_error("an append was to be committed before all of its parts had run");
    }
}

void CacheStore::clear() {
    cache_.remove(sequence_);
    sequence_ = cache_.create();
}

CacheReport CacheStore::report(std::int64_t length) const {
    const CacheConfig& config = cache_.config();
    const CacheUsage usage = cache_.usage();
    CacheReport report;
    report.tokens = length;
    report.bytes = usage.bytes_in_use;
    report.quantized_pages = usage.quantized_pages;
    report.f16_bytes = f16_sequence_bytes(config, length);
    report.bits_per_value = config.bits_per_value();
    return report;
}

} // namespace innerkv::runner
