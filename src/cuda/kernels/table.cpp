// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernels/table.h"

#include <string>

#include "innerkv/error.h"

namespace innerkv::cuda {
namespace {

struct Row {
    const char* name;
    Codec k;
    Codec v;
    KernelEntry (*find)(int blocks, bool packed);
};

constexpr Row kTable[] = {
    {"base", affine(3), affine(3), base_kernel},
    {"small", affine(3), affine(2), small_kernel},
    {"hybrid", affine(3), hybrid(2), hybrid_kernel},
    {"k4v4", affine(4), affine(4), k4v4_kernel},
    {"k4v3", affine(4), affine(3), k4v3_kernel},
    {"k4v2", affine(4), affine(2), k4v2_kernel},
    {"k8v8", symmetric(8), symmetric(8), k8v8_kernel},
};

} // namespace

KernelEntry find_kernel(const PageFormat& format, bool packed) {
    // Pages that are fp16 throughout: any kernel's other half.
    if (!format.quantized()) return kTable[0].find(format.blocks(), packed);
    std::string names;
    for (const Row& row : kTable) {
        if (row.k == format.k && row.v == format.v) return row.find(format.blocks(), packed);
        names.append(names.empty() ? "" : ", ").append(row.name);
    }
    throw InvalidArgument(
        "cuda attention: there is no kernel for keys of " + std::to_string(format.k.bits) +
        " and values of " + std::to_string(format.v.bits) +
        " bits in these codecs; supported are those of the presets " + names + " and f16");
}

} // namespace innerkv::cuda
