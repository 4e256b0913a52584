// SPDX-License-Identifier: Apache-2.0
#include "settings.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <string>

#include "innerkv/error.h"

namespace innerkv::runner {
namespace {

/// The most that the cache takes (CacheConfig).
constexpr int kMostTokens = 1 << 24;

/// Each of these returns false where the value is not one of those there are.

bool parse_tokens(std::string_view value, int least, int step, int& tokens) {
    int number = 0;
    const char* const end = value.data() + value.size();
    const auto [stopped, error] = std::from_chars(value.data(), end, number);
    if (error != std::errc() || stopped != end || number < least || number > kMostTokens ||
        number % step != 0) {
        return false;
    }
    tokens = number;
    return true;
}

bool parse_switch(std::string_view value, bool& on) {
    on = value == "on";
    return on || value == "off";
}

bool parse_norm(std::string_view value, KeyNormPolicy& norm) {
    const std::optional<KeyNormPolicy> found = find_key_norm(value);
    norm = found.value_or(norm);
    return found.has_value();
}

/// Two digits a layer.
bool parse_layers(std::string_view value, std::vector<LayerCodecs>& layers) {
    if (value.empty() || value.size() % 2 != 0 ||
        value.find_first_not_of("2348") != std::string_view::npos) {
        return false;
    }
    layers.clear();
    for (std::size_t i = 0; i < value.size(); i += 2) {
        layers.push_back(codecs_of_bits(value[i] - '0', value[i + 1] - '0'));
    }
    return true;
}

struct Setting {
    std::string_view name;
    std::string_view form;     ///< of its value, in the list of all
    std::string_view values;   ///< that there are
    bool of_transform = false; ///< part of the key transform
    bool (*parse)(std::string_view value, SessionOptions& options);
};

constexpr Setting kSettings[] = {
    {"sink", "N", "a whole number of tokens from 0 to 16777216", false,
     [](std::string_view value, SessionOptions& options) {
         return parse_tokens(value, 0, 1, options.preset.sink_tokens);
     }},
    {"recent", "N", "a multiple of 32 tokens from 0 to 16777216", false,
     [](std::string_view value, SessionOptions& options) {
         return parse_tokens(value, 0, kPageTokens, options.preset.recent_tokens);
     }},
    {"calibration", "N", "a whole number of tokens from 1 to 16777216", true,
     [](std::string_view value, SessionOptions& options) {
         return parse_tokens(value, 1, 1, options.transform.calibration_tokens);
     }},
    {"epoch", "N", "a multiple of 32 tokens from 32 to 16777216", true,
     [](std::string_view value, SessionOptions& options) {
         return parse_tokens(value, kPageTokens, kPageTokens, options.transform.centre_epoch);
     }},
    {"norm", "none|prefill|balanced", "none, prefill or balanced", true,
     [](std::string_view value, SessionOptions& options) {
         return parse_norm(value, options.transform.norm);
     }},
    {"centre", "on|off", "on or off", true,
     [](std::string_view value, SessionOptions& options) {
         return parse_switch(value, options.transform.centre);
     }},
    {"rotate", "on|off", "on or off", true,
     [](std::string_view value, SessionOptions& options) {
         return parse_switch(value, options.transform.rotate);
     }},
    {"queries", "on|off", "on or off", true,
     [](std::string_view value, SessionOptions& options) {
         return parse_switch(value, options.queries);
     }},
    {"layers", "KVKV...",
     "two digits a layer, bits of its keys and of its values: 2, 3, 4 or 8 each", false,
     [](std::string_view value, SessionOptions& options) {
         return parse_layers(value, options.layer_codecs);
     }},
};
static_assert(kMostTokens == 16777216 && kPageTokens == 32, "the texts above say so");

std::string known_settings() {
    std::string names;
    for (const Setting& setting : kSettings) {
        const bool last = &setting == std::end(kSettings) - 1;
        names.append(names.empty() ? "" : last ? " and " : ", ");
        names.append(setting.name).append("=").append(setting.form);
    }
    return names;
}

void apply(std::string_view text, std::vector<std::string>& seen, SessionOptions& options) {
    const std::size_t equals = std::min(text.find('='), text.size());
    const std::string_view name = text.substr(0, equals);
    const std::string_view value = text.substr(std::min(equals + 1, text.size()));
    const auto* const setting = std::ranges::find(kSettings, name, &Setting::name);
    if (setting == std::end(kSettings)) {
        throw InvalidArgument("a preset has no setting '" + std::string(text) + "'; there are " +
                              known_settings() + " (N: tokens)");
    }
    if (std::ranges::find(seen, name) != seen.end()) {
        throw InvalidArgument("the setting " + std::string(name) +
                              " is named twice; leave one of the two out");
    }
    if (!setting->parse(value, options)) {
        throw InvalidArgument(std::string(text) + ": '" + std::string(value) + "' is not " +
                              std::string(setting->values));
    }
    seen.emplace_back(name);
    if (setting->of_transform) {
        options.named_transform.emplace_back(name);
    }
}

} // namespace

void apply_settings(std::string_view settings, SessionOptions& options) {
    if (!settings.empty() && !options.preset.k.quantized()) {
        throw InvalidArgument("the cache " + std::string(options.preset.name) +
                              " quantizes nothing and has no settings; leave '" +
                              std::string(settings) + "' out");
    }
    std::vector<std::string> seen;
    while (!settings.empty()) {
        settings.remove_prefix(1);
        const std::string_view setting = settings.substr(0, settings.find('+'));
        apply(setting, seen, options);
        settings.remove_prefix(setting.size());
    }
    if (!options.layer_codecs.empty() && options.preset.k.kind != CodecKind::affine) {
        throw InvalidArgument(
            "layers= is for presets with codecs of 2 to 4 bits of this library; " +
            std::string(options.preset.name) +
            " has others here; leave it out, or choose another preset");
    }
}

} // namespace innerkv::runner
