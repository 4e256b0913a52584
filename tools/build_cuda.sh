#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles the library's CUDA kernels and their tests for sm_80, sm_90 and PTX, warnings as errors: a break shows
# without a device. Where there is one the tests run too, and everywhere some of them with the kernels as C++ on the CPU.
# Last line `N passed, N failed`.
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
        cmake --build build-cuda --target cuda_tests cuda_attention_timing cuda_emulated_tests
}

if ! build; then
    echo "failed: the CUDA build"
    echo "0 passed, 1 failed"
    exit 1
fi
passed=0
failed=0
check() {
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
}

# Without a device every test says so and is skipped.
check build-cuda/tests/cuda/cuda_tests --gtest_brief=1
# A minute's worth: every kind of argument, page, query and append, on a few formats.
check build-cuda/tests/simt/cuda_emulated_tests --gtest_brief=1 \
    --gtest_filter='DeviceArguments.*:DeviceMisuse.*:DeviceEdge.*:DeviceGraph.*:DeviceRowTypes.*:DevicePlan.*:DeviceFailures.*:DeviceStreams.*:DeviceBench.*:CudaKernels.*:All/DeviceFormats.*/base_64:All/DeviceFormats.Chunks*/k8v8_80:All/DeviceFormats.Chunks*/hybrid_128:DeviceCacheArguments.*:DeviceCacheForks.*:DeviceCacheTransfers.*:All/DeviceCacheFormats.*/small_80'
echo "$passed passed, $failed failed"
((failed == 0))
