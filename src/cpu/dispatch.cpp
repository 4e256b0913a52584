// SPDX-License-Identifier: Apache-2.0
#include "cpu/dispatch.h"

#include <cstdlib>
#include <string>

#include "innerkv/error.h"

namespace innerkv::cpu {

namespace {

/// As it was at first use: a program may change its environment while threads attend.
const std::string& isa_variable() {
    static const std::string value = [] {
        const char* variable = std::getenv("INNERKV_ISA");
        return std::string(variable ? variable : "");
    }();
    return value;
}

} // namespace

const Kernel& select_kernel(std::string_view name) {
    const char* source = "option isa";
    if (name.empty()) {
        name = isa_variable();
        source = "environment variable INNERKV_ISA";
    }
    if (name.empty()) return *available_kernels().front();
    std::string names;
    for (const Kernel* kernel : available_kernels()) {
        if (kernel->name == name) return *kernel;
        names.append(names.empty() ? "" : ", ").append(kernel->name);
    }
    throw InvalidArgument(std::string(source) + ": instruction set '" + std::string(name) +
                          "' is not available on this processor and build; there are " + names);
}

} // namespace innerkv::cpu
