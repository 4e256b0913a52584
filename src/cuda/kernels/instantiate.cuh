// SPDX-License-Identifier: Apache-2.0
// The kernels of one pair of codecs.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/kernels/table.h"

namespace innerkv::cuda {

template <class C>
KernelEntry entry() {
    return {reinterpret_cast<const void*>(&attention_kernel<C>),
            static_cast<int>(sizeof(BlockShared<C>)),
            static_cast<int>(sizeof(WarpShared<C>)),
            C::kRows,
            C::Key::codec,
            C::Value::codec};
}

template <class Key, class Value, int blocks>
KernelEntry entry_of(bool packed) {
    return packed ? entry<Config<Key, Value, blocks, true>>()
                  : entry<Config<Key, Value, blocks, false>>();
}

template <class Key, class Value>
KernelEntry instantiate(int blocks, bool packed) {
    switch (blocks) {
    case 1:
        return entry_of<Key, Value, 1>(packed);
    case 2:
        return entry_of<Key, Value, 2>(packed);
    case 3:
        return entry_of<Key, Value, 3>(packed);
    case 4:
        return entry_of<Key, Value, 4>(packed);
    default:
        return {};
    }
}

} // namespace innerkv::cuda
