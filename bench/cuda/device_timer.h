// SPDX-License-Identifier: Apache-2.0
// Times of what a stream does on a CUDA device, and the device's own limits: events around replays of a CUDA graph,
// the second-level cache filled with something else before each.
#pragma once

#include <functional>
#include <memory>

#include "innerkv/cuda.h"

namespace innerkv::bench {

/// Work of a stream, captured.
class DeviceGraph {
public:
    ~DeviceGraph();
    DeviceGraph(DeviceGraph&&) noexcept;
    DeviceGraph& operator=(DeviceGraph&&) noexcept;

private:
    friend class DeviceTimer;
    struct Impl;
    explicit DeviceGraph(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

class DeviceTimer {
public:
    /// Throws cuda::DeviceError where memory is short.
    explicit DeviceTimer(int device = 0);
    ~DeviceTimer();
    DeviceTimer(const DeviceTimer&) = delete;
    DeviceTimer& operator=(const DeviceTimer&) = delete;

    cuda::Stream stream() const;

    double read_bandwidth() const; ///< bytes a second: the fastest of several passes over 4 GiB
    /// int8 multiply-accumulates a second of mma.m16n8k32 on registers, all multiprocessors.
    double dot_rate() const;

    /// `work` enqueues on stream().
    DeviceGraph capture(const std::function<void()>& work) const;
    /// Microseconds of a replay, start of the graph included.
    double time_us(const DeviceGraph& graph) const;
    /// Microseconds of `work` inside a graph: what many of them, each after a flush, take longer than as many
    /// flushes; the median of seven.
    double time_inside_graph_us(const std::function<void()>& work) const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace innerkv::bench
