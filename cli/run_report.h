// SPDX-License-Identifier: Apache-2.0
// What `innerkv run` tells after the text.
#pragma once

#include <optional>
#include <string>

#include "compare.h"
#include "generate.h"
#include "output.h"

namespace innerkv::cli {

struct RunReport {
    std::string model;
    std::string cache;
    int context = 0;
    int threads = 0;
    Generation generation;
    std::string compared_cache; ///< empty: none was asked for
    std::optional<Comparison>
        comparison; ///< empty: none was asked for, or Ctrl-C came before its end
};

Json to_json(const RunReport& report);
/// Begins with an empty line.
std::string to_text(const RunReport& report);

} // namespace innerkv::cli
