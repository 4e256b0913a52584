// SPDX-License-Identifier: Apache-2.0
// Which instruction set a run will use: the library's rule, told before the run.
#pragma once

#include <string>

namespace innerkv::bench {

/// `wanted`, or INNERKV_ISA, or the best there is. Throws InvalidArgument listing those there are.
std::string choose_isa(const std::string& wanted);

} // namespace innerkv::bench
