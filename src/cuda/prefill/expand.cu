// SPDX-License-Identifier: Apache-2.0
#include "cuda/prefill/expand.cuh"

#include "cuda/prefill/kernels.h"

namespace innerkv::cuda {
namespace {

template <class Key, class Value, int blocks>
PrefillKernel entry() {
    using C = Config<Key, Value, blocks, true>;
    return {reinterpret_cast<const void*>(&expand_kernel<C>), kExpandWarps * kWarpSize,
            kExpandWarps * static_cast<int>(sizeof(Expansion<C>))};
}

template <class Key, class Value>
PrefillKernel instantiate(int blocks) {
    switch (blocks) {
    case 1:
        return entry<Key, Value, 1>();
    case 2:
        return entry<Key, Value, 2>();
    case 3:
        return entry<Key, Value, 3>();
    case 4:
        return entry<Key, Value, 4>();
    default:
        return {};
    }
}

using Affine2 = Side<CodecKind::affine, 2>;
using Affine3 = Side<CodecKind::affine, 3>;
using Affine4 = Side<CodecKind::affine, 4>;
using Symmetric8 = Side<CodecKind::symmetric, 8>;
using Hybrid2 = Side<CodecKind::hybrid, 2>;

struct Row {
    Codec k;
    Codec v;
    PrefillKernel (*find)(int blocks);
};

template <class Key, class Value>
constexpr Row row_of() {
    return {Key::codec, Value::codec, instantiate<Key, Value>};
}

/// As src/cuda/kernels/table.cpp has them.
constexpr Row kTable[] = {
    row_of<Affine3, Affine3>(),       row_of<Affine3, Affine2>(), row_of<Affine3, Hybrid2>(),
    row_of<Affine4, Affine4>(),       row_of<Affine4, Affine3>(), row_of<Affine4, Affine2>(),
    row_of<Symmetric8, Symmetric8>(),
};

} // namespace

PrefillKernel expand_kernel_of(const PageFormat& format) {
    // Pages that are fp16 throughout: any kernel's other half.
    if (!format.quantized()) return kTable[0].find(format.blocks());
    for (const Row& row : kTable)
        if (row.k == format.k && row.v == format.v) return row.find(format.blocks());
    return {};
}

} // namespace innerkv::cuda
