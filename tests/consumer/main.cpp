// SPDX-License-Identifier: Apache-2.0
// What a user of the installed library writes: fill a cache, attend to it, ask for devices.
#include <innerkv/attention.h>
#include <innerkv/cache.h>
#include <innerkv/cuda.h>
#include <innerkv/view.h>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
    constexpr int kTokens = 320;
    constexpr int kHeadDim = 128;
    const innerkv::Preset& preset = innerkv::find_preset("base");

    innerkv::CacheConfig config = innerkv::CacheConfig::from_preset(preset, 1, 1, kHeadDim);
    config.max_tokens = kTokens;
    innerkv::Cache cache(config);
    const innerkv::SequenceId sequence = cache.create();

    std::vector<float> keys(kTokens * kHeadDim);
    for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = std::sin(static_cast<float>(i));
    const std::vector<float> values(kTokens * kHeadDim, 0.5f);
    const innerkv::AppendRows rows{sequence,
                                   kTokens,
                                   {keys.data(), innerkv::RowType::f32, kHeadDim, kHeadDim},
                                   {values.data(), innerkv::RowType::f32, kHeadDim, kHeadDim}};
    cache.append(0, {&rows, 1});
    cache.settle(sequence);

    const innerkv::SequenceView view = cache.view(0, sequence);
    std::vector<float> output(kHeadDim);
    innerkv::QueryBlock query;
    query.sequence = &view;
    query.q = keys.data();
    query.out = output.data();
    query.first_position = kTokens - 1;
    innerkv::AttentionShape shape;
    shape.q_heads = 1;
    shape.kv_heads = 1;
    shape.format = config.format;
    innerkv::Attention(shape, {&query, 1}).run_all();

    // Every value is the same, so whatever the weights are, the output is that value.
    for (const float value : output)
        if (!(std::fabs(value - 0.5f) < 0.01f)) return std::printf("wrong output %f\n", value), 1;
    if (cache.usage().quantized_pages == 0) return std::puts("nothing was quantized"), 1;
    std::printf("%lld of %d tokens in pages\n", 32LL * cache.usage().quantized_pages, kTokens);
    // Either there is a device or a reason; with CUDA in the build this takes its runtime to link.
    if (innerkv::cuda::devices().empty() == innerkv::cuda::unavailable_reason().empty())
        return std::puts("neither devices nor a reason why not"), 1;
    return 0;
}
