// SPDX-License-Identifier: Apache-2.0
#include "rivals.h"

#include <algorithm>

#include "innerkv/error.h"
#include "runner/runner.h"

namespace innerkv::runner {
namespace {

constexpr std::string_view kSimulated = "sim:";
constexpr std::string_view kLibllama = "llama:";
constexpr std::string_view kRotate = "+rot";
constexpr std::string_view kWindows = "+windows";
constexpr std::string_view kF16Type = "f16";

constexpr int kKiviBits[] = {2, 4};
constexpr int kTurboBits[] = {3, 4};
/// The newest tokens that KIVI keeps in its released code (residual_length).
constexpr int kKiviResidual = 128;
/// The default preset's: its sink, and of the newest what the next token finds.
simulated::Window our_windows() {
    const Preset& preset = presets().front();
    return {.sink = preset.sink_tokens, .keep = preset.recent_tokens + 1, .step = kPageTokens};
}

std::string numbered(std::string_view name, int number) {
    return std::string(name).append(std::to_string(number));
}

/// Cuts a suffix off; false: it was not there.
bool cut(std::string_view& name, std::string_view suffix) {
    if (!name.ends_with(suffix)) {
        return false;
    }
    name.remove_suffix(suffix.size());
    return true;
}

[[noreturn]] void refuse(std::string_view name) {
    std::string message = "there is no contender '" + std::string(name) + "'; there are presets (";
    for (const Preset& preset : presets()) {
        message.append(preset.name).append(", ");
    }
    message.append("each also with the paper's codecs as paper:PRESET)");
    for (const std::string& rival : rival_names()) {
        message.append(", ").append(rival);
    }
    throw InvalidArgument(message);
}

const simulated::BlockType* find_block_type(std::string_view name) {
    const std::span<const simulated::BlockType> types = simulated::block_types();
    const auto found = std::ranges::find(types, name, &simulated::BlockType::name);
    return found == types.end() ? nullptr : &*found;
}

simulated::Definition block_cache(const simulated::BlockType& type, bool rotate) {
    const simulated::CodecPtr codec = simulated::block_codec(type);
    if (!rotate) {
        return {{codec, {}}, {codec, {}}, true};
    }
    return {{simulated::rotated(codec, true), {}}, {simulated::rotated(codec, false), {}}, true};
}

/// Keys fill up to 128 tokens, which are rounded when the next one comes; of values the newest 128 and
/// the token itself are fp16.
simulated::Definition kivi_cache(int bits) {
    return {{simulated::kivi_keys(bits), {.sink = 0, .keep = 1, .step = kKiviResidual}},
            {simulated::kivi_values(bits), {.sink = 0, .keep = kKiviResidual + 1, .step = 1}}};
}

/// False: no such type.
bool find_simulated(Rival& rival) {
    if (const simulated::BlockType* const type = find_block_type(rival.type)) {
        rival.cache = block_cache(*type, rival.rotate);
        return true;
    }
    if (rival.rotate) {
        return false;
    }
    for (const int bits : kKiviBits) {
        if (rival.type == numbered("kivi", bits)) {
            rival.cache = kivi_cache(bits);
            return true;
        }
    }
    for (const int bits : kTurboBits) {
        if (rival.type == numbered("turbo", bits)) {
            const simulated::CodecPtr codec = simulated::turbo_codec(bits);
            rival.cache = {{codec, {}}, {codec, {}}};
            return true;
        }
    }
    return false;
}

} // namespace

std::vector<std::string> rival_names() {
    std::vector<std::string> names;
    for (const std::string_view engine : {kSimulated, kLibllama}) {
        for (const simulated::BlockType& type : simulated::block_types()) {
            names.push_back(std::string(engine).append(type.name).append("[+rot]"));
            if (engine == kSimulated) {
                names.back().append("[+windows]");
            }
        }
    }
    names.push_back(std::string(kLibllama).append(kF16Type));
    for (const int bits : kKiviBits) {
        names.push_back(numbered("sim:kivi", bits));
    }
    for (const int bits : kTurboBits) {
        names.push_back(numbered("sim:turbo", bits) + "[+windows]");
    }
    return names;
}

bool names_rival(std::string_view name) {
    return name.starts_with(kSimulated) || name.starts_with(kLibllama);
}

Rival parse_rival(std::string_view name) {
    Rival rival;
    rival.libllama = name.starts_with(kLibllama);
    std::string_view type = name.substr((rival.libllama ? kLibllama : kSimulated).size());
    const bool windows = cut(type, kWindows);
    rival.rotate = cut(type, kRotate);
    rival.type = type;
    if (rival.libllama) {
        const bool f16 = type == kF16Type && !rival.rotate;
        const simulated::BlockType* const block_type = find_block_type(type);
        if (windows || (!f16 && !block_type)) {
            refuse(name);
        }
        if (block_type) {
            rival.cache = block_cache(*block_type, rival.rotate);
        }
        return rival;
    }
    if (!find_simulated(rival)) {
        refuse(name);
    }
    if (windows) {
        if (!rival.cache.k.window.at_once()) {
            refuse(name);
        }
        rival.cache.k.window = rival.cache.v.window = our_windows();
    }
    return rival;
}

} // namespace innerkv::runner
