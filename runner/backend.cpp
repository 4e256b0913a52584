// SPDX-License-Identifier: Apache-2.0
#include "backend.h"

#include <dlfcn.h>

#include <mutex>
#include <new>
#include <string>

#include "ggml-cpu.h"
#include "innerkv/error.h"
#include "log.h"

namespace innerkv::runner {
namespace {

/// The directory that libggml-base was loaded from, in the build cache or beside an installed program:
/// it holds the backend modules too. Empty if the dynamic loader does not say.
std::string module_directory() {
    // Asked of the library itself: in an executable the address may be that of a stub.
    void* const library = dlopen("libggml-base.so.0", RTLD_LAZY | RTLD_NOLOAD);
    void* const symbol = library ? dlsym(library, "ggml_init") : nullptr;
    Dl_info info{};
    const bool found = symbol && dladdr(symbol, &info) != 0 && info.dli_fname;
    const std::string path = found ? info.dli_fname : "";
    if (library) {
        dlclose(library);
    }
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? "" : path.substr(0, slash);
}

template <typename Function>
Function cpu_function(const char* name) {
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(cpu_device());
    return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(registry, name));
}

} // namespace

ggml_backend_dev_t cpu_device() {
    static std::once_flag once;
    std::call_once(once, [] {
        install_log();
        if (const std::string directory = module_directory(); !directory.empty()) {
            ggml_backend_load_all_from_path(directory.c_str());
        }
    });
    ggml_backend_dev_t const device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!device) {
        throw Error("no CPU module of ggml (libggml-cpu-*) that this processor runs lies beside "
                    "libggml-base; install innerkv's libraries together");
    }
    return device;
}

ggml_backend_buffer_type_t* cpu_extra_buffer_types() {
    static ggml_backend_buffer_type_t none[] = {nullptr};
    const auto list =
        cpu_function<ggml_backend_dev_get_extra_bufts_t>("ggml_backend_dev_get_extra_bufts");
    ggml_backend_buffer_type_t* const types = list ? list(cpu_device()) : nullptr;
    return types ? types : none;
}

ContextPtr make_context(std::size_t tensors, std::size_t graph_nodes) {
    const std::size_t graph_bytes =
        graph_nodes ? ggml_graph_overhead_custom(graph_nodes, /*grads=*/false) : 0;
    ContextPtr context(ggml_init({/*.mem_size =*/tensors * ggml_tensor_overhead() + graph_bytes,
                                  /*.mem_buffer =*/nullptr,
                                  /*.no_alloc =*/true}));
    if (!context) {
        throw std::bad_alloc();
    }
    return context;
}

PoolPtr make_thread_pool(int threads, std::uint32_t polling) {
    const auto new_pool = cpu_function<decltype(&ggml_threadpool_new)>("ggml_threadpool_new");
    const auto free_pool = cpu_function<PoolPtr::deleter_type>("ggml_threadpool_free");
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    params.poll = polling;
    PoolPtr pool(new_pool && free_pool ? new_pool(&params) : nullptr, free_pool);
    if (!pool) {
        throw Error("ggml could not start " + std::to_string(threads) + " threads");
    }
    return pool;
}

CpuBackend::CpuBackend(int threads, std::uint32_t polling)
    : pool_(make_thread_pool(threads, polling)),
      backend_(ggml_backend_dev_init(cpu_device(), nullptr)) {
    const auto set_threads =
        cpu_function<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads");
    const auto set_pool =
        cpu_function<decltype(&ggml_backend_cpu_set_threadpool)>("ggml_backend_cpu_set_threadpool");
    if (!backend_ || !set_threads || !set_pool) {
        throw Error("ggml's CPU backend cannot be started");
    }
    set_threads(backend_.get(), threads);
    set_pool(backend_.get(), pool_.get());
}

void CpuBackend::compute(ggml_cgraph* graph) const {
    const ggml_status status = ggml_backend_graph_compute(backend_.get(), graph);
    if (status != GGML_STATUS_SUCCESS) {
        throw Error(std::string("ggml could not compute a graph: ") +
                    ggml_status_to_string(status));
    }
}

} // namespace innerkv::runner
