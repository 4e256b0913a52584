// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernels/table.h"

#include <string>

#include "innerkv/error.h"

namespace innerkv::cuda {
namespace {

struct Row {
    const char* preset;
    KernelEntry (*find)(int blocks, bool packed);
};

/// The kernels themselves tell which codecs they read.
constexpr Row kTable[] = {
    {"base", base_kernel}, {"small", small_kernel}, {"hybrid", hybrid_kernel},
    {"k4v4", k4v4_kernel}, {"k4v3", k4v3_kernel},   {"k4v2", k4v2_kernel},
    {"k8v8", k8v8_kernel},
};

std::string name_of(Codec codec) {
    return std::string(kind_name(codec.kind)) + " " + std::to_string(codec.bits);
}

} // namespace

KernelEntry find_kernel(const PageFormat& format, bool packed) {
    // Pages that are fp16 throughout: any kernel's other half.
    if (!format.quantized()) return kTable[0].find(format.blocks(), packed);
    for (const Row& row : kTable) {
        const KernelEntry entry = row.find(format.blocks(), packed);
        if (entry.k == format.k && entry.v == format.v) return entry;
    }
    throw_no_kernel(format);
}

void throw_no_kernel(const PageFormat& format) {
    std::string supported;
    for (const Row& row : kTable) {
        const KernelEntry entry = row.find(1, false);
        supported +=
            std::string(row.preset) + " (" + name_of(entry.k) + ", " + name_of(entry.v) + "), ";
    }
    throw InvalidArgument("cuda attention: there is no kernel for keys of " + name_of(format.k) +
                          " and values of " + name_of(format.v) +
                          " bits; supported are those of the presets " + supported + "and f16");
}

} // namespace innerkv::cuda
