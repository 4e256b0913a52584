// SPDX-License-Identifier: Apache-2.0
// Loading ggml's CPU backend. It is a shared module per instruction set, next to libggml-base,
// wherever that is: in the build cache or beside an installed program.
#pragma once

#include <dlfcn.h>
#include <ggml-backend.h>

#include <string>

namespace innerkv {

/// The directory that libggml-base was loaded from, which holds the backend modules too. Empty if
/// the dynamic loader does not say.
inline std::string ggml_backend_directory() {
    Dl_info info{};
    // Asked of the library itself: in an executable the address may be that of a stub.
    void* library = dlopen("libggml-base.so.0", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library != nullptr ? dlsym(library, "ggml_init") : nullptr;
    const bool found = symbol != nullptr && dladdr(symbol, &info) != 0 && info.dli_fname != nullptr;
    const std::string path = found ? info.dli_fname : "";
    if (library != nullptr) dlclose(library);
    const auto slash = path.rfind('/');
    return slash == std::string::npos ? std::string() : path.substr(0, slash);
}

/// Registers the best CPU backend for this processor, once; later calls do nothing. Call it before
/// any other use of ggml's backends or of libllama. False: no module was found that runs here.
inline bool load_ggml_backends() {
    static const bool loaded = [] {
        const std::string directory = ggml_backend_directory();
        if (directory.empty()) return false;
        ggml_backend_load_all_from_path(directory.c_str());
        return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) != nullptr;
    }();
    return loaded;
}

} // namespace innerkv
