// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>
#include <utility>

#include "contender.h"
#include "innerkv/error.h"
#include "peers/ggml_peer.h"

namespace innerkv::bench {
namespace {

struct Family {
    std::string_view name; ///< what stands before the colon
    std::unique_ptr<Contender> (*make)(const AttentionCase&, std::string_view type, int threads,
                                       const Checkpoint&);
    std::size_t (*bytes)(const AttentionCase&, std::string_view type);
    std::vector<std::string> (*types)();
};

constexpr Family kFamilies[] = {
    {"ggml", make_ggml_peer, ggml_peer_bytes, ggml_cache_types},
    {"ggml-rows", make_ggml_rows_peer, ggml_peer_bytes, ggml_cache_types},
};

/// The family and the type that a name is made of.
std::pair<const Family&, std::string_view> find_peer(std::string_view name) {
    require_peer(name);
    const std::size_t colon = name.find(':');
    return {*std::ranges::find(kFamilies, name.substr(0, colon), &Family::name),
            name.substr(colon + 1)};
}

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
    const auto [family, type] = find_peer(name);
    return family.make(attention, type, threads, checkpoint);
}

std::size_t peer_bytes(const AttentionCase& attention, std::string_view name) {
    const auto [family, type] = find_peer(name);
    return family.bytes(attention, type);
}

} // namespace innerkv::bench
