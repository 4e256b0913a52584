// SPDX-License-Identifier: Apache-2.0
#include "both_caches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "innerkv/codec.h"

namespace innerkv::test {
namespace {

/// As a caller of this type holds it.
void write_element(RowType type, float value, std::byte* to) {
    if (type == RowType::f32) {
        std::memcpy(to, &value, sizeof value);
        return;
    }
    const auto bits = type == RowType::f16
                          ? f16_from_float(value)
                          : static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
    std::memcpy(to, &bits, sizeof bits);
}

CacheConfig with_room_for_forks(CacheConfig config) {
    config.max_sequences *= 2;
    return config;
}

} // namespace

BothCaches::BothCaches(const CacheConfig& cache_config, int tokens, RowType type)
    : config(cache_config), host(with_room_for_forks(config)), device(config), tokens_(tokens),
      type_(type), counts_(static_cast<std::size_t>(config.max_sequences) * sizeof(std::int32_t)) {
    const std::size_t bytes = element_bytes();
    for (int slot = 0; slot < config.max_sequences; ++slot) {
        EXPECT_EQ(device.create(), slot);
        device.reserve(slot, tokens);
        ids.push_back(host.create());
        done_.push_back(0);
        const TestSequence source(config, tokens, 17u + static_cast<unsigned>(slot));
        const TestRows* sides[] = {&source.k, &source.v, &source.q};
        for (int side = 0; side < 3; ++side) {
            auto& rows = rows_[side].emplace_back(static_cast<std::size_t>(tokens) *
                                                  token_elements(side) * bytes);
            std::byte* to = rows.data();
            for (int token = 0; token < tokens; ++token)
                for (int head = 0; head < heads(side); ++head)
                    for (int channel = 0; channel < config.format.head_dim; ++channel, to += bytes)
                        write_element(type, sides[side]->value(token, head, channel), to);
        }
    }
    for (int side = 0; side < 3; ++side)
        buffers_.emplace_back(static_cast<std::size_t>(config.max_sequences * config.max_append) *
                              token_elements(side) * bytes);
}

Rows BothCaches::host_rows(int slot, int side, int first) const {
    const auto stride = static_cast<std::ptrdiff_t>(token_elements(side));
    return {rows_[side][static_cast<std::size_t>(slot)].data() +
                static_cast<std::size_t>(first) * token_elements(side) * element_bytes(),
            type_, stride, config.format.head_dim};
}

cuda::DeviceAppend BothCaches::device_append(int layer, int max_tokens, cuda::Stream stream) const {
    const auto rows = [&](int side) {
        const auto token = static_cast<std::ptrdiff_t>(token_elements(side));
        return cuda::DeviceRows{buffers_[static_cast<std::size_t>(side)].as(), type_,
                                max_tokens * token, token, config.format.head_dim};
    };
    return {layer,    max_tokens, counts_.as<std::int32_t>(),
            rows(0),  rows(1),    with_queries ? rows(2) : cuda::DeviceRows{},
            heads(2), stream};
}

void BothCaches::write_rows(const std::vector<int>& counts, int max_tokens) {
    counts_.write(counts.data(), counts.size() * sizeof(int));
    for (int side = 0; side < 3; ++side) {
        const std::size_t token = token_elements(side) * element_bytes();
        // Rows that nobody brings are NaN.
        std::vector<std::byte> all(counts.size() * static_cast<std::size_t>(max_tokens) * token,
                                   std::byte{0xff});
        for (std::size_t slot = 0; slot < counts.size(); ++slot)
            std::memcpy(all.data() + slot * static_cast<std::size_t>(max_tokens) * token,
                        rows_[side][slot].data() + static_cast<std::size_t>(done_[slot]) * token,
                        static_cast<std::size_t>(counts[slot]) * token);
        buffers_[static_cast<std::size_t>(side)].write(all.data(), all.size());
    }
}

void BothCaches::append_to_host(const std::vector<int>& counts) {
    std::vector<AppendRows> batch;
    for (int slot = 0; slot < config.max_sequences; ++slot) {
        const auto at = static_cast<std::size_t>(slot);
        if (counts[at] == 0) continue;
        batch.push_back({ids[at], counts[at], host_rows(slot, 0, done_[at]),
                         host_rows(slot, 1, done_[at]),
                         with_queries ? host_rows(slot, 2, done_[at]) : Rows{}, heads(2)});
    }
    for (int layer = 0; layer < config.layers; ++layer) host.append(layer, batch);
    for (std::size_t slot = 0; slot < counts.size(); ++slot) done_[slot] += counts[slot];
}

void BothCaches::append(const std::vector<int>& counts) {
    const int most = std::max(1, *std::max_element(counts.begin(), counts.end()));
    write_rows(counts, most);
    for (int layer = 0; layer < config.layers; ++layer) device.append(device_append(layer, most));
    append_to_host(counts);
    device.verify();
}

void BothCaches::reorder(const std::vector<int>& sources) {
    device.reorder(sources);
    reorder_host(sources);
}

void BothCaches::reorder_host(const std::vector<int>& sources) {
    std::vector<SequenceId> reordered;
    for (const int source : sources)
        reordered.push_back(host.fork(ids[static_cast<std::size_t>(source)]));
    for (const SequenceId id : ids) host.remove(id);
    ids = reordered;
    const std::vector<int> done = done_;
    for (std::size_t slot = 0; slot < sources.size(); ++slot)
        done_[slot] = done[static_cast<std::size_t>(sources[slot])];
    for (auto& of_side : rows_) {
        const auto old = of_side;
        for (std::size_t slot = 0; slot < sources.size(); ++slot)
            of_side[slot] = old[static_cast<std::size_t>(sources[slot])];
    }
}

void BothCaches::truncate(int slot, std::int64_t length) {
    device.truncate(slot, length);
    host.truncate(ids[static_cast<std::size_t>(slot)], length);
}

void BothCaches::append_all(int step) {
    for (int first = 0; first < tokens_; first += step)
        append(std::vector<int>(ids.size(), std::min(step, tokens_ - first)));
}

void BothCaches::poke(int slot, int token, int head, int channel, float value) {
    const std::size_t at = static_cast<std::size_t>(token) * token_elements(0) +
                           static_cast<std::size_t>(head * config.format.head_dim + channel);
    write_element(type_, value,
                  rows_[0][static_cast<std::size_t>(slot)].data() + at * element_bytes());
}

void BothCaches::expect_same() const {
    for (std::size_t slot = 0; slot < ids.size(); ++slot) {
        const cuda::HostSequence fetched = device.fetch(static_cast<int>(slot));
        for (int layer = 0; layer < config.layers; ++layer) {
            SCOPED_TRACE(testing::Message() << "slot " << slot << ", layer " << layer);
            const Contents expected = contents(host, ids[slot], layer);
            const Contents result = contents(config, fetched.view(layer));
            EXPECT_EQ(result.length, expected.length);
            EXPECT_EQ(result.quantized.size(), expected.quantized.size());
            EXPECT_TRUE(
                std::equal(result.first_token, result.first_token + 3, expected.first_token));
            // Not EXPECT_EQ: these are long.
            EXPECT_TRUE(result.transforms == expected.transforms) << "transforms";
            EXPECT_TRUE(result.f16_rows == expected.f16_rows) << "fp16 rows";
            EXPECT_TRUE(result.quantized == expected.quantized) << "quantized pages or centres";
        }
    }
}

} // namespace innerkv::test
