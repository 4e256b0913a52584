// SPDX-License-Identifier: Apache-2.0
// Batches of tests/attention's fixture on a device. Device memory that nobody may use is NaN.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fixture.h"
#include "innerkv/cuda.h"

namespace innerkv::test {

/// Tests that need a device.
class OnDevice : public testing::Test {
protected:
    void SetUp() override;
};

/// Device memory with all bits set, and copies.
class DeviceBuffer {
public:
    explicit DeviceBuffer(std::size_t bytes);
    DeviceBuffer(const void* host, std::size_t bytes);

    template <typename T = std::byte>
    T* as() const {
        return reinterpret_cast<T*>(data_.get());
    }
    void read(void* host, std::size_t bytes) const;
    void write(const void* host, std::size_t bytes);

private:
    struct Free {
        void operator()(std::byte* data) const;
    };
    std::unique_ptr<std::byte, Free> data_;
};

void expect_success(cudaError_t status);

/// `call` throws an Exception whose message has `message` in it, and leaves no error behind but the one that every call
/// has without a driver.
template <typename Exception>
void expect_refused(const std::function<void()>& call, const std::string& message) {
    static_cast<void>(cudaGetLastError()); // forgotten
    const cudaError_t always = cudaGetLastError();
    try {
        call();
        FAIL() << "not refused: " << message;
    } catch (const Exception& error) {
        EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
    }
    EXPECT_EQ(cudaGetLastError(), always);
}

/// What `work` enqueues on a stream, captured.
class Graph {
public:
    explicit Graph(const std::function<void(cuda::Stream)>& work);
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    void replay() const; ///< and waits

private:
    cudaStream_t stream_ = nullptr;
    cudaGraph_t graph_ = nullptr;
    cudaGraphExec_t executable_ = nullptr;
};

/// Queries and outputs of a batch as a device has them: [block, token, head][head_dim], with gaps.
class DeviceBatch {
public:
    /// Room for at least `tokens` query tokens a sequence.
    explicit DeviceBatch(const Batch& batch, RowType type = RowType::f32, int tokens = 1);

    const cuda::AttentionCall& call() const { return call_; }
    cuda::AttentionLimits limits() const;
    const cuda::DeviceSequences& sequences() const { return sequences_; }
    void clear_outputs();
    /// Copies what was computed to the batch's own outputs.
    void fetch(const Batch& batch) const;

private:
    int tokens_;
    RowType type_;
    std::ptrdiff_t head_stride_;
    std::ptrdiff_t token_stride_;
    std::ptrdiff_t sequence_stride_;
    std::size_t elements_;
    cuda::DeviceSequences sequences_;
    DeviceBuffer q_;
    DeviceBuffer out_;
    DeviceBuffer log_sum_exp_;
    cuda::AttentionCall call_;
};

/// Of `limits` max_blocks, with few of which each warp has many pages, and max_history_tokens count.
Result attend_on_device(const Batch& batch, RowType type = RowType::f32,
                        cuda::AttentionLimits limits = {});

/// Against the reference, before and after what no query sees is poisoned: the same bits both times.
void expect_device_close_to_reference(Batch& batch, const cuda::AttentionLimits& limits = {});

/// Gaps between heads, tokens and sequences: what was NaN still is, and nothing else but sequence `without`, whose
/// outputs are NaN too.
void expect_only_outputs_written(const Batch& batch, const DeviceBatch& device, int without = -1);

} // namespace innerkv::test
