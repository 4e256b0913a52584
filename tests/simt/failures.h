// SPDX-License-Identifier: Apache-2.0
// Failures of the CUDA runtime on demand.
#pragma once

namespace simt {

/// How many more times memory is copied or filled before that fails, once; below 0: it does not.
extern int writes_until_failure;

} // namespace simt
