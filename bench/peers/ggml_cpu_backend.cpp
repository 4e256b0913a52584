// SPDX-License-Identifier: Apache-2.0
#include "peers/ggml_cpu_backend.h"

#include <chrono>
#include <new>
#include <string>
#include <thread>
#include <type_traits>

#include <ggml_backends.h>

#include "innerkv/error.h"

namespace innerkv::bench {
namespace {

/// 131,072 pauses: a few milliseconds, enough between waking and the timed graph.
constexpr std::uint32_t kPollingLevel = 1;
constexpr auto kLongerThanPolling = std::chrono::milliseconds(25);

ggml_backend_dev_t cpu_device() {
    ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    ggml_backend_dev_t device =
        load_ggml_backends() ? ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) : nullptr;
    if (!device) throw Error("ggml has no CPU backend that runs on this processor");
    return device;
}

/// Functions of the CPU backend live in a module: they are asked for by name.
template <typename Function>
Function* backend_function(ggml_backend_dev_t device, const char* name) {
    void* address = ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), name);
    if (!address) throw Error(std::string("ggml's CPU backend has no ") + name);
    return reinterpret_cast<Function*>(address);
}

} // namespace

GgmlCpu::GgmlCpu(int threads) : threads_(threads) {
    ggml_backend_dev_t device = cpu_device();
    using SetThreads = std::remove_pointer_t<ggml_backend_set_n_threads_t>;
    free_threadpool_ =
        backend_function<decltype(ggml_threadpool_free)>(device, "ggml_threadpool_free");
    backend_.reset(ggml_backend_dev_init(device, nullptr));
    if (!backend_) throw Error("ggml's CPU backend does not start");
    backend_function<SetThreads>(device, "ggml_backend_set_n_threads")(backend_.get(), threads);

    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    params.poll = kPollingLevel;
    threadpool_ =
        backend_function<decltype(ggml_threadpool_new)>(device, "ggml_threadpool_new")(&params);
    if (!threadpool_) throw Error("ggml's CPU backend cannot start its threads");
    backend_function<decltype(ggml_backend_cpu_set_threadpool)>(
        device, "ggml_backend_cpu_set_threadpool")(backend_.get(), threadpool_);
    build_wake_graph();
}

GgmlCpu::~GgmlCpu() {
    backend_.reset();
    if (threadpool_) free_threadpool_(threadpool_);
}

void GgmlCpu::build_wake_graph() {
    wake_context_.reset(ggml_init({.mem_size = 8 * ggml_tensor_overhead() + ggml_graph_overhead(),
                                   .mem_buffer = nullptr,
                                   .no_alloc = true}));
    ggml_tensor* one = ggml_new_tensor_1d(wake_context_.get(), GGML_TYPE_F32, 1);
    wake_graph_ = ggml_new_graph(wake_context_.get());
    ggml_build_forward_expand(wake_graph_, ggml_scale(wake_context_.get(), one, 1.0f));
    wake_buffer_.reset(ggml_backend_alloc_ctx_tensors(wake_context_.get(), backend_.get()));
    if (!wake_buffer_) throw std::bad_alloc();
    ggml_backend_buffer_clear(wake_buffer_.get(), 0);
}

void GgmlCpu::compute(ggml_cgraph* graph) const {
    if (ggml_backend_graph_compute(backend_.get(), graph) != GGML_STATUS_SUCCESS)
        throw Error("ggml failed to compute a graph");
}

void GgmlCpu::wake() const { compute(wake_graph_); }

void GgmlCpu::rest() const {
    if (threads_ > 1) std::this_thread::sleep_for(kLongerThanPolling);
}

} // namespace innerkv::bench
