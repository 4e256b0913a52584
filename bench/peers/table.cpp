// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>

#include "contender.h"
#include "innerkv/error.h"
#include "peers/ggml_peer.h"

namespace innerkv::bench {
namespace {

struct Family {
    std::string_view name; ///< what stands before the colon
    std::unique_ptr<Contender> (*make)(const AttentionCase&, std::string_view type, int threads,
                                       const Checkpoint&);
    std::vector<std::string> (*types)();
};

constexpr Family kFamilies[] = {
    {"ggml", make_ggml_peer, ggml_cache_types},
    {"ggml-rows", make_ggml_rows_peer, ggml_cache_types},
};

} // namespace

std::vector<std::string> peer_names() {
    std::vector<std::string> names;
    for (const Family& family : kFamilies)
        for (const std::string& type : family.types())
            names.push_back(std::string(family.name) + ":" + type);
    return names;
}

void require_peer(std::string_view name) {
    std::string known;
    for (const std::string& peer : peer_names()) {
        if (peer == name) return;
        known.append(known.empty() ? "" : ", ").append(peer);
    }
    throw InvalidArgument("no peer is called '" + std::string(name) + "'; there are " + known);
}

std::unique_ptr<Contender> make_peer(const AttentionCase& attention, std::string_view name,
                                     int threads, const Checkpoint& checkpoint) {
    require_peer(name);
    const std::size_t colon = name.find(':');
    const auto* family = std::ranges::find(kFamilies, name.substr(0, colon), &Family::name);
    return family->make(attention, name.substr(colon + 1), threads, checkpoint);
}

} // namespace innerkv::bench
