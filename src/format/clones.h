// SPDX-License-Identifier: Apache-2.0
// Plain loops that are worth wider registers than every processor has.
#pragma once

/// Before a function: compiled for wider registers too, with all that it calls; the loader chooses, before
/// ThreadSanitizer is set up. The same bits, where its file is compiled without contraction
/// (tests/format/clones_test.cpp). INNERKV_NO_CLONES: for the compiler's own flags alone.
#if !defined(INNERKV_NO_CLONES) && defined(__x86_64__) && defined(__gnu_linux__) &&                \
    !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define INNERKV_CLONES [[gnu::flatten, gnu::target_clones("default", "avx2", "arch=x86-64-v4")]]
#else
#define INNERKV_CLONES
#endif
