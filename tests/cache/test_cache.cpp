// SPDX-License-Identifier: Apache-2.0
#include "test_cache.h"

#include <algorithm>

namespace innerkv::test {

CacheConfig small_config(std::string_view preset, int head_dim) {
    CacheConfig config = CacheConfig::from_preset(find_preset(preset), 1, 2, head_dim);
    config.transform = {};
    config.max_tokens = 2000;
    config.max_sequences = 4;
    return config;
}

namespace {

constexpr int kQueries = 2; ///< side of TestRows

TestRows make_rows(const CacheConfig& config, int tokens, std::uint64_t seed, int side) {
    Random random(seed + static_cast<std::uint64_t>(1000 * side));
    const int heads = side == kQueries ? 2 * config.kv_heads : config.kv_heads;
    return TestRows(random, tokens, heads, config.format.head_dim, side);
}

} // namespace

TestSequence::TestSequence(const CacheConfig& config, int count, std::uint64_t seed)
    : k(make_rows(config, count, seed, 0)), v(make_rows(config, count, seed, 1)),
      q(make_rows(config, count, seed, kQueries)), tokens(count) {}

AppendRows TestSequence::rows(SequenceId id, int first, int count) const {
    return {id, count, k.slice(first), v.slice(first), q.slice(first), q.heads()};
}

void TestSequence::append(Cache& cache, SequenceId id, int first, int count) const {
    const AppendRows batch[] = {rows(id, first, count)};
    for (int layer = 0; layer < cache.config().layers; ++layer) cache.append(layer, batch);
}

void TestSequence::append_all(Cache& cache, SequenceId id, int step) const {
    for (int first = 0; first < tokens; first += step)
        append(cache, id, first, std::min(step, tokens - first));
}

const std::uint16_t* f16_row(const CacheConfig& config, const PageRun& run, bool key, int head,
                             std::int64_t token) {
    const std::int64_t at = token - run.first_token;
    const std::byte* page = run.pages[static_cast<std::size_t>(at / kPageTokens)] +
                            static_cast<std::size_t>(head) * run.head_stride;
    return f16_row(page, key, at % kPageTokens, config.format.head_dim);
}

std::vector<std::byte> heads_of(const PageRun& run, std::size_t page, int kv_heads,
                                std::size_t page_bytes) {
    std::vector<std::byte> all;
    for (int head = 0; head < kv_heads; ++head) {
        const std::byte* from = run.pages[page] + static_cast<std::size_t>(head) * run.head_stride;
        all.insert(all.end(), from, from + page_bytes);
    }
    return all;
}

Contents contents(const Cache& cache, SequenceId id, int layer) {
    CacheConfig config = cache.config();
    config.format = config.layer_format(layer);
    return contents(config, cache.view(layer, id));
}

Contents contents(const CacheConfig& config, const SequenceView& view) {
    const int dim = config.format.head_dim;
    Contents result;
    result.length = view.length;
    const PageRun* runs[] = {&view.sink, &view.quantized, &view.recent};
    for (int i = 0; i < 3; ++i)
        result.first_token[i] = runs[i]->tokens > 0 ? runs[i]->first_token : 0;
    for (std::size_t i = 0; i < view.quantized.pages.size(); ++i) {
        const std::vector<std::byte> pages =
            heads_of(view.quantized, i, config.kv_heads, config.format.page_bytes());
        result.quantized.insert(result.quantized.end(), pages.begin(), pages.end());
    }
    for (const PageRun* run : {&view.sink, &view.recent})
        for (std::int64_t t = run->first_token; t < run->first_token + run->tokens; ++t)
            for (int head = 0; head < config.kv_heads; ++head)
                for (const bool key : {true, false}) {
                    const std::uint16_t* row = f16_row(config, *run, key, head, t);
                    result.f16_rows.insert(result.f16_rows.end(), row, row + dim);
                }
    const std::size_t row = sizeof(std::uint16_t) * static_cast<std::size_t>(dim);
    for (const std::byte* centre : view.centres.epochs)
        result.quantized.insert(result.quantized.end(), centre,
                                centre + row * static_cast<std::size_t>(config.kv_heads));
    for (const KeyTransform& transform : view.transforms)
        for (const float* array : {transform.norm, transform.centre, transform.value_centre})
            if (array) result.transforms.insert(result.transforms.end(), array, array + dim);
    return result;
}

} // namespace innerkv::test
