// SPDX-License-Identifier: Apache-2.0
// device_bench.h in a build without CUDA.
#include "device_bench.h"

#include "innerkv/cuda.h"

namespace innerkv::bench {

AttentionBenchResult run_device_attention_bench(const AttentionBenchOptions& /*options*/) {
    throw cuda::Unavailable("cuda: " + cuda::unavailable_reason());
}

} // namespace innerkv::bench
