// SPDX-License-Identifier: Apache-2.0
// What a calibration says about itself, as `calibrate` and `inspect` print it.
#pragma once

#include <string>

#include "output.h"
#include "runner/calibration.h"

namespace innerkv::cli {

Json to_json(const runner::Calibration& calibration);
std::string to_text(const runner::Calibration& calibration);

} // namespace innerkv::cli
