// SPDX-License-Identifier: Apache-2.0
// bench/cuda/device_timer.h where nothing is timed: graphs run, and everything takes a microsecond.
#include "device_timer.h"

#include <cuda_runtime_api.h>

namespace innerkv::bench {

struct DeviceGraph::Impl {
    cudaGraphExec_t executable = nullptr;
    ~Impl() { cudaGraphExecDestroy(executable); }
};
DeviceGraph::DeviceGraph(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceGraph::~DeviceGraph() = default;
DeviceGraph::DeviceGraph(DeviceGraph&&) noexcept = default;
DeviceGraph& DeviceGraph::operator=(DeviceGraph&&) noexcept = default;

struct DeviceTimer::Impl {
    cudaStream_t stream = nullptr;
    Impl() { cudaStreamCreate(&stream); }
    ~Impl() { cudaStreamDestroy(stream); }
};
DeviceTimer::DeviceTimer(int /*device*/) : impl_(std::make_unique<Impl>()) {}
DeviceTimer::~DeviceTimer() = default;

cuda::Stream DeviceTimer::stream() const { return impl_->stream; }
double DeviceTimer::read_bandwidth() const { return 1e12; }
double DeviceTimer::dot_rate() const { return 1e12; }

DeviceGraph DeviceTimer::capture(const std::function<void()>& work) const {
    auto captured = std::make_unique<DeviceGraph::Impl>();
    cudaGraph_t graph = nullptr;
    cudaStreamBeginCapture(impl_->stream, cudaStreamCaptureModeThreadLocal);
    work();
    cudaStreamEndCapture(impl_->stream, &graph);
    cudaGraphInstantiate(&captured->executable, graph, 0);
    return DeviceGraph(std::move(captured));
}

double DeviceTimer::time_us(const DeviceGraph& graph) const {
    cudaGraphLaunch(graph.impl_->executable, impl_->stream);
    return 1;
}

} // namespace innerkv::bench
