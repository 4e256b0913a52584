#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests of the CUDA backend under NVIDIA's compute-sanitizer, on a machine with a device: memcheck finds accesses out
# of bounds and memory that leaks, racecheck shared memory that threads use without waiting for each other. The tests
# must have been built (tools/build_cuda.sh). Slow: a choice of them, or those of a GoogleTest filter.
#
#     tools/check_cuda.sh [FILTER]
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

export PATH=$PATH:/usr/local/cuda/bin
tests=build-cuda/tests/cuda/cuda_tests
for need in compute-sanitizer nvidia-smi; do
    if ! command -v "$need" >/dev/null; then
        echo "$need is not installed; it comes with the CUDA toolkit and its driver"
        exit 1
    fi
done
if ! nvidia-smi -L | grep -q GPU; then
    echo "there is no CUDA device here: run this where there is one"
    exit 1
fi
if [[ ! -x $tests ]]; then
    echo "$tests is not built; run tools/build_cuda.sh"
    exit 1
fi

# Every kernel, kind of page and call that moves pages, once.
filter=${1:-'All/DeviceFormats.*/base_64:All/DeviceFormats.Chunks*/hybrid_128:All/DevicePrefillFormats.RaggedBatch/base_128:DeviceEdge.MoreQueryTokens*:DeviceCacheArguments.*:DeviceCacheForks.*:DeviceCacheTransfers.*:DeviceStreams.*:All/DeviceCacheFormats.*/small_80'}
status=0
for tool in memcheck racecheck; do
    options=(--tool "$tool" --error-exitcode 1)
    [[ $tool == racecheck ]] || options+=(--leak-check full --report-api-errors no)
    if compute-sanitizer "${options[@]}" "$tests" --gtest_brief=1 --gtest_filter="$filter"; then
        echo "$tool: nothing found"
    else
        echo "$tool: failed"
        status=1
    fi
done
exit $status
