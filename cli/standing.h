// SPDX-License-Identifier: Apache-2.0
// Standings as JSON, for the files of --resume.
#pragma once

#include <vector>

#include "contest.h"
#include "output.h"

namespace innerkv::cli {

Json to_json(const std::vector<Standing>& standings);
/// Throws Failure where the JSON is not what to_json makes; values come back bit by bit.
std::vector<Standing> standings_from_json(const Json& json);

} // namespace innerkv::cli
