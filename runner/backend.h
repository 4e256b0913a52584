// SPDX-License-Identifier: Apache-2.0
// ggml's CPU backend, reached through its registry: the instruction-set variants are modules that are
// loaded at run time, so nothing of them may be linked. The benchmark's peers use it too.
#pragma once

#include <cstdint>
#include <memory>

#include "ggml-backend.h"

namespace innerkv::runner {

/// The CPU device; loads the best variant for this processor on first use. Throws Error without one.
ggml_backend_dev_t cpu_device();

/// Buffer types with layouts of their own that make matrix products faster; null-terminated.
ggml_backend_buffer_type_t* cpu_extra_buffer_types();

struct FreeContext {
    void operator()(ggml_context* context) const { ggml_free(context); }
};
using ContextPtr = std::unique_ptr<ggml_context, FreeContext>;

struct FreeBuffer {
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
};
using BufferPtr = std::unique_ptr<ggml_backend_buffer, FreeBuffer>;

/// A context for `tensors` descriptors (data elsewhere) and, where wanted, a graph of so many nodes.
ContextPtr make_context(std::size_t tensors, std::size_t graph_nodes = 0);

using PoolPtr = std::unique_ptr<ggml_threadpool, void (*)(ggml_threadpool*)>;

/// Threads that live from graph to graph; between graphs they poll for `polling` times 131,072 pauses before they
/// sleep. Throws Error where they cannot be started.
PoolPtr make_thread_pool(int threads, std::uint32_t polling);

/// Threads that compute graphs. They live as long as the object: starting them for every token would
/// cost more than a small model's layers.
class CpuBackend {
public:
    /// `polling`: as in make_thread_pool.
    explicit CpuBackend(int threads, std::uint32_t polling);
    ggml_backend_t get() const { return backend_.get(); }
    /// Throws Error where ggml reports a failure.
    void compute(ggml_cgraph* graph) const;

private:
    struct Free {
        void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
    };

    PoolPtr pool_;
    std::unique_ptr<ggml_backend, Free> backend_; ///< uses the pool, and so goes first
};

} // namespace innerkv::runner
