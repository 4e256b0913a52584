// SPDX-License-Identifier: Apache-2.0
// Keeps the optimizer from dropping work whose result nobody uses. Included by translation units with
// instruction-set flags: always inlined.
#pragma once

namespace innerkv::bench {

/// The memory behind `data` counts as read and changed.
[[gnu::always_inline]] inline void keep(const void* data) {
    asm volatile("" : : "r"(data) : "memory");
}

/// The compiler knows no longer what a vector register holds.
template <typename Vector>
[[gnu::always_inline]] inline void hide(Vector& vector) {
#if defined(__x86_64__)
    asm volatile("" : "+v"(vector));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(vector));
#endif
}

} // namespace innerkv::bench
