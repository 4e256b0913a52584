// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "innerkv/attention.h"
#include "innerkv/error.h"

namespace innerkv::bench {

std::string choose_isa(const std::string& wanted) {
    const std::vector<std::string_view> isas = available_isas();
    const char* forced = std::getenv("INNERKV_ISA");
    std::string name = wanted;
    if (name.empty() && forced) name = forced;
    if (name.empty()) return std::string(isas.front());
    if (std::ranges::find(isas, name) != isas.end()) return name;
    std::string names;
    for (const std::string_view isa : isas) names.append(names.empty() ? "" : ", ").append(isa);
    throw InvalidArgument("instruction set '" + name +
                          "' is not available; this build and processor have " + names);
}

} // namespace innerkv::bench
