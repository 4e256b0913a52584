// SPDX-License-Identifier: Apache-2.0
#include "settings.h"

#include <algorithm>
#include <charconv>
#include <string>

#include "innerkv/error.h"

namespace innerkv::runner {
namespace {

[[noreturn]] void refuse(std::string_view setting) {
    throw InvalidArgument("a preset has no setting '" + std::string(setting) +
                          "'; there are sink=N, recent=N, calibration=N, epoch=N (tokens), "
                          "norm=none|prefill|balanced, centre=on|off and rotate=on|off");
}

int parse_tokens(std::string_view setting, std::string_view value) {
    int tokens = 0;
    const char* const end = value.data() + value.size();
    const auto [stopped, error] = std::from_chars(value.data(), end, tokens);
    if (error != std::errc() || stopped != end) {
        refuse(setting);
    }
    return tokens;
}

/// True for the first of two words.
bool parse_choice(std::string_view setting, std::string_view value, std::string_view yes,
                  std::string_view no) {
    if (value != yes && value != no) {
        refuse(setting);
    }
    return value == yes;
}

KeyNormPolicy parse_norm(std::string_view setting, std::string_view value) {
    const std::optional<KeyNormPolicy> norm = find_key_norm(value);
    if (!norm) {
        refuse(setting);
    }
    return *norm;
}

void apply(std::string_view setting, SessionOptions& options) {
    const std::size_t equals = std::min(setting.find('='), setting.size());
    const std::string_view key = setting.substr(0, equals);
    const std::string_view value = setting.substr(std::min(equals + 1, setting.size()));
    if (key == "sink") {
        options.preset.sink_tokens = parse_tokens(setting, value);
    } else if (key == "recent") {
        options.preset.recent_tokens = parse_tokens(setting, value);
    } else if (key == "calibration") {
        options.transform.calibration_tokens = parse_tokens(setting, value);
    } else if (key == "epoch") {
        options.transform.centre_epoch = parse_tokens(setting, value);
    } else if (key == "norm") {
        options.transform.norm = parse_norm(setting, value);
    } else if (key == "centre") {
        options.transform.centre = parse_choice(setting, value, "on", "off");
    } else if (key == "rotate") {
        options.transform.rotate = parse_choice(setting, value, "on", "off");
    } else {
        refuse(setting);
    }
}

} // namespace

void apply_settings(std::string_view settings, SessionOptions& options) {
    while (!settings.empty()) {
        settings.remove_prefix(1);
        const std::string_view setting = settings.substr(0, settings.find('+'));
        apply(setting, options);
        settings.remove_prefix(setting.size());
    }
}

} // namespace innerkv::runner
