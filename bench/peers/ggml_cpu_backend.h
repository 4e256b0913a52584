// SPDX-License-Identifier: Apache-2.0
// ggml's CPU backend with threads of its own, and owners for its C objects.
#pragma once

#include <memory>

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

namespace innerkv::bench {

struct GgmlFree {
    void operator()(ggml_context* context) const { ggml_free(context); }
    void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
    void operator()(ggml_backend* backend) const { ggml_backend_free(backend); }
};
using GgmlContext = std::unique_ptr<ggml_context, GgmlFree>;
using GgmlBuffer = std::unique_ptr<ggml_backend_buffer, GgmlFree>;

class GgmlCpu {
public:
    /// Throws Error where no module of ggml's runs on this processor.
    explicit GgmlCpu(int threads);
    ~GgmlCpu();
    GgmlCpu(const GgmlCpu&) = delete;
    GgmlCpu& operator=(const GgmlCpu&) = delete;

    ggml_backend_t backend() const { return backend_.get(); }

    /// Throws Error where ggml reports a failure.
    void compute(ggml_cgraph* graph) const;

    /// Its threads poll for a few milliseconds after a graph and then sleep: a small graph wakes them,
    /// waiting puts them to sleep.
    void wake() const;
    void rest() const;

private:
    void build_wake_graph();

    int threads_;
    ggml_threadpool_t threadpool_ = nullptr;
    decltype(&ggml_threadpool_free) free_threadpool_ = nullptr;
    std::unique_ptr<ggml_backend, GgmlFree> backend_;
    GgmlContext wake_context_;
    GgmlBuffer wake_buffer_;
    ggml_cgraph* wake_graph_ = nullptr;
};

} // namespace innerkv::bench
