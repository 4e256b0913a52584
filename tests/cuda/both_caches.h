// SPDX-License-Identifier: Apache-2.0
// A cache on a device beside one on the host that gets the same rows: a slot there is a sequence here.
#pragma once

#include <memory>
#include <vector>

#include "device.h"
#include "innerkv/cuda_cache.h"
#include "test_cache.h"

namespace innerkv::test {

class BothCaches {
public:
    /// Sequences of up to `tokens` tokens each, in all max_sequences slots, pages reserved for them.
    BothCaches(const CacheConfig& config, int tokens, RowType type = RowType::f32);

    /// The next counts[slot] tokens to every layer of both.
    void append(const std::vector<int>& counts);
    /// Slot i becomes what slot sources[i] was, its next tokens too.
    void reorder(const std::vector<int>& sources);
    void reorder_host(const std::vector<int>& sources); ///< the host's alone
    void truncate(int slot, std::int64_t length);
    /// Slots have been truncated to these lengths: their tokens behind come next.
    void rewind(const std::vector<int>& lengths) { done_ = lengths; }
    /// Every slot's tokens, `step` at a time.
    void append_all(int step);
    /// The same bytes in every layer of all slots.
    void expect_same() const;

    /// An append of these counts that uses this object's memory, which write_rows() fills.
    cuda::DeviceAppend device_append(int layer, int max_tokens,
                                     cuda::Stream stream = nullptr) const;
    /// Rows of the next counts[slot] tokens and the counts to device memory.
    void write_rows(const std::vector<int>& counts, int max_tokens);
    /// The same tokens to the host's cache, which stands behind them then.
    void append_to_host(const std::vector<int>& counts);

    /// Replaces one element of K of a token to come.
    void poke(int slot, int token, int head, int channel, float value);

    CacheConfig config;
    Cache host;
    cuda::DeviceCache device;
    std::vector<SequenceId> ids; ///< of slots
    bool with_queries = true;    ///< appends bring them

private:
    std::size_t element_bytes() const { return type_ == RowType::f32 ? 4 : 2; }
    int heads(int side) const { return side == 2 ? 2 * config.kv_heads : config.kv_heads; }
    std::size_t token_elements(int side) const {
        return static_cast<std::size_t>(heads(side) * config.format.head_dim);
    }
    Rows host_rows(int slot, int side, int first) const;

    int tokens_;
    RowType type_;
    std::vector<std::vector<std::byte>> rows_[3]; ///< [side][slot]: [token, head, head_dim]
    std::vector<int> done_;                       ///< [slot]
    std::vector<DeviceBuffer> buffers_;           ///< of a step, K, V, Q
    DeviceBuffer counts_;
};

} // namespace innerkv::test
