// SPDX-License-Identifier: Apache-2.0
// Files that a long computation will write: looked at before it begins.
#pragma once

#include <string>

namespace innerkv::runner {

/// What a path names in the end, whether that is there or not: symbolic links are followed.
std::string link_target(const std::string& path);

/// Why a file cannot be written, in the system's words; empty: it can. Neither makes nor changes it.
std::string write_obstacle(const std::string& path);

} // namespace innerkv::runner
