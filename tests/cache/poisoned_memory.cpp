// SPDX-License-Identifier: Apache-2.0
// Aligned memory that these tests allocate, pages among it, begins as 0xFF bytes: NaN as fp16 and as fp32.
#include <cstdlib>
#include <cstring>
#include <new>

void* operator new(std::size_t bytes, std::align_val_t alignment) {
    const auto step = static_cast<std::size_t>(alignment);
    void* memory = std::aligned_alloc(step, (bytes + step - 1) / step * step);
    if (memory == nullptr) throw std::bad_alloc();
    return std::memset(memory, 0xFF, bytes);
}

void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
