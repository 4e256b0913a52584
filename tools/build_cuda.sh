#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles the library's CUDA kernels and their tests for sm_80, sm_90 and PTX, warnings as errors: a break shows
# without a device. Where there is one the tests run too. Last line `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

export PATH=$PATH:/usr/local/cuda/bin
if ! command -v nvcc >/dev/null; then
    echo "nvcc is not installed: the CUDA kernels are not compiled here"
    echo "0 passed, 0 failed"
    exit 0
fi

build() {
    tools/setup build &&
        cmake --preset cuda -DINNERKV_BUILD_PROGRAM=OFF >/dev/null &&
        cmake --build build-cuda --target cuda_tests cuda_attention_timing
}

if ! build; then
    echo "failed: the CUDA build"
    echo "0 passed, 1 failed"
    exit 1
fi
# Without a device every test says so and is skipped.
if build-cuda/tests/cuda/cuda_tests --gtest_brief=1; then
    echo "1 passed, 0 failed"
else
    echo "0 passed, 1 failed"
    exit 1
fi
