// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "errors.h"
#include "innerkv/attention.h"
#include "innerkv/error.h"
#include "innerkv/format.h"
#include "log.h"

namespace innerkv::cli {
std::vector<std::string> split_list(const std::string& list) {
    std::vector<std::string> parts;
    std::size_t start = 0;
    for (;;) {
        const std::size_t comma = std::min(list.find(',', start), list.size());
        std::string part = list.substr(start, comma - start);
        if (part.empty()) throw CLI::ValidationError("an empty name in '" + list + "'", 0);
        if (std::ranges::find(parts, part) != parts.end())
            throw CLI::ValidationError("'" + part + "' is named twice", 0);
        parts.push_back(std::move(part));
        if (comma == list.size()) return parts;
        start = comma + 1;
    }
}

std::string preset_names() {
    std::string names;
    for (const Preset& preset : presets())
        names.append(names.empty() ? "" : ",").append(preset.name);
    return names;
}

namespace {

using CheckName = std::function<void(const std::string&)>;

CLI::Option* add_name(CLI::App& command, const std::string& flags, std::string& value,
                      const std::string& description, const char* type, const CheckName& check) {
    return command.add_option(flags, value, description)
        ->type_name(type)
        ->check(accepted_by(check))
        ->capture_default_str();
}

CheckName each(const CheckName& check) {
    return [check](const std::string& list) {
        for (const std::string& name : split_list(list)) check(name);
    };
}

void check_preset(const std::string& name) { find_preset(name); }
void check_contender(const std::string& name) { runner::make_options(name, 1); }

} // namespace

CLI::Option* add_preset_option(CLI::App& command, const std::string& flags, std::string& preset,
                               const std::string& description) {
    return add_name(command, flags, preset, description, "PRESET", check_preset);
}

CLI::Option* add_presets_option(CLI::App& command, std::string& presets,
                                const std::string& description) {
    return add_name(command, "--cache", presets, description, "A,B,...", each(check_preset));
}

CLI::Option* add_contender_option(CLI::App& command, const std::string& flags,
                                  std::string& contender, const std::string& description) {
    return add_name(command, flags, contender, description, "NAME", check_contender);
}

CLI::Option* add_contenders_option(CLI::App& command, std::string& contenders,
                                   const std::string& description) {
    return add_name(command, "--cache", contenders, description, "A,B,...", each(check_contender));
}

CLI::Option* add_model_option(CLI::App& command, std::string& path) {
    return command.add_option("-m,--model", path, "GGUF model file")
        ->type_name("FILE")
        ->required()
        ->check(file_name());
}

CLI::Option* add_threads_option(CLI::App& command, int& threads, const std::string& description) {
    return command.add_option("--threads", threads, description)
        ->type_name("N")
        ->check(whole_range(1, runner::kMaxThreads));
}

void limit_threads(int& threads) {
    const int cores = runner::available_cores();
    if (threads <= cores) return;
    log_warning(
        fmt::format("--threads {}: this process may use {} core{}, and more threads would wait "
                    "for each other; running {}",
                    threads, cores, cores == 1 ? "" : "s", cores));
    threads = cores;
}

CLI::Option* add_key_norm_option(CLI::App& command, std::string& key_norm) {
    return command
        .add_option("--key-norm", key_norm, "Channel norms of keys, instead of the preset's")
        ->check(CLI::IsMember({"none", "prefill", "balanced"}));
}

CLI::Option* add_codec_option(CLI::App& command, std::string& codec) {
    return command
        .add_option("--codec", codec,
                    "innerkv: the presets' own; paper: symmetric codes and a key norm alone")
        ->check(CLI::IsMember({kOwnCodec, kPaperCodec}))
        ->capture_default_str();
}

CLI::Option* add_isa_option(CLI::App& command, std::string& isa, const std::string& description) {
    return command.add_option("--isa", isa, description)
        ->type_name("NAME")
        ->check(accepted_by([](const std::string& name) { select_isa(name); }));
}

CLI::Option* add_json_option(CLI::App& command, bool& json) {
    return command.add_flag("--json", json, "Print one JSON object");
}

namespace {

/// "norm and centre": settings of the key transform that the contender's name gives.
std::string transform_settings(const runner::SessionOptions& session) {
    return fmt::format("{}", fmt::join(session.named_transform, " and "));
}

} // namespace

runner::SessionOptions session_options(const std::string& contender, int context,
                                       const std::string& key_norm, const std::string& codec) {
    runner::SessionOptions session = runner::make_options(contender, context);
    if (!session.rival.empty()) return session;
    if (codec == kPaperCodec) {
        if (!session.layer_codecs.empty())
            throw UsageError(fmt::format("--codec paper has its own codecs, and {} names others "
                                         "for each layer; leave one of the two out",
                                         contender));
        if (!session.named_transform.empty())
            throw UsageError(
                fmt::format("--codec paper has its own key transform and would undo {} of {}; "
                            "leave --codec out and name the cache paper:PRESET with its settings",
                            transform_settings(session), contender));
        session.preset = paper_preset(session.preset);
        session.transform = TransformPolicy::from_preset(session.preset);
    }
    if (key_norm.empty() || !session.preset.k.quantized()) return session;
    if (std::ranges::find(session.named_transform, "norm") != session.named_transform.end())
        throw UsageError(fmt::format("--key-norm {} would override the norm that {} names; leave "
                                     "one of the two out",
                                     key_norm, contender));
    session.preset.key_norm = find_key_norm(key_norm).value();
    session.transform.norm = session.preset.key_norm;
    return session;
}

void check_context(const char* option, int context, const runner::ModelInfo& info) {
    if (context > info.context_length)
        throw UsageError(fmt::format("{} {} is beyond the {} tokens that {} was made for", option,
                                     context, info.context_length, info.name));
}

CLI::Option* add_calibration_option(CLI::App& command, std::string& path) {
    return command
        .add_option("--calibration", path,
                    "What innerkv calibrate took from the model: key transforms of all sequences, "
                    "bits of each layer")
        ->type_name("FILE")
        ->check(file_name());
}

namespace {

/// Bits by layer stand in for those of the default preset; others would be undone unseen.
void check_layer_bits(const runner::Calibration& calibration, const std::string& cache) {
    const runner::SessionOptions session = runner::make_options(cache, 1);
    const Preset& replaced = presets().front();
    const bool named = session.preset.k != replaced.k || session.preset.v != replaced.v ||
                       !session.layer_codecs.empty();
    if (!named) return;
    throw UsageError(fmt::format("--calibration {} brings the bits of every layer, {:.2f} a value, "
                                 "and would undo those of {}; name {}, whose windows it keeps",
                                 calibration.path, calibration.bits_per_value(), cache,
                                 replaced.name));
}

} // namespace

std::shared_ptr<const runner::Calibration>
read_calibration(const std::string& path, const std::string& caches, const std::string& codec) {
    if (path.empty()) return {};
    for (const std::string& cache : split_list(caches)) {
        const runner::SessionOptions session = runner::make_options(cache, 1);
        if (!session.rival.empty())
            throw UsageError(
                fmt::format("--calibration is for presets, {} is somebody else's cache "
                            "and has no key transform; measure it in a run without "
                            "--calibration",
                            cache));
        if (!session.preset.k.quantized())
            throw UsageError(fmt::format("--calibration: the cache {} quantizes nothing and has no "
                                         "key transform; leave one of the two out",
                                         cache));
        if (!session.named_transform.empty())
            throw UsageError(fmt::format("--calibration brings norm, centre and rotation, or bits "
                                         "that go with the preset's own, and would "
                                         "undo {} of {}; leave one of the two out",
                                         transform_settings(session), cache));
        if (session.transform != TransformPolicy::from_preset(find_preset(session.preset.name)))
            throw UsageError(fmt::format("--calibration brings norm, centre and rotation, and {} "
                                         "has others; leave one of the two out",
                                         cache));
    }
    if (codec == kPaperCodec)
        throw UsageError(
            "--calibration brings norm, centre and rotation, --codec paper has its own "
            "key norm alone; leave one of the two out");
    auto calibration = runner::read_calibration(path);
    if (!calibration->layer_codecs.empty())
        for (const std::string& cache : split_list(caches)) check_layer_bits(*calibration, cache);
    return calibration;
}

CLI::Validator accepted_by(std::function<void(const std::string&)> check) {
    const auto message = [check = std::move(check)](const std::string& value) {
        try {
            check(value);
        } catch (const InvalidArgument& error) {
            return std::string(error.what());
        } catch (const CLI::ValidationError& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    return CLI::Validator(message, "");
}

CLI::Validator file_name() {
    const auto check = [](const std::string& name) {
        return std::string(name.empty() ? "the name of a file is empty" : "");
    };
    return CLI::Validator(check, "");
}

std::optional<std::int64_t> whole_number(const std::string& text) {
    std::int64_t value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value);
    if (text != std::to_string(value)) return std::nullopt;
    return value;
}

CLI::Validator whole_range(std::int64_t low, std::int64_t high) {
    const auto check = [low, high](const std::string& text) {
        const auto value = whole_number(text);
        if (value && *value >= low && *value <= high) return std::string();
        return fmt::format("{} is not a whole number from {} to {}", text, low, high);
    };
    return CLI::Validator(check, fmt::format("{}..{}", low, high));
}

CLI::Validator finite_range(double low, double high) {
    const auto check = [low, high](const std::string& text) {
        double value = 0;
        const bool number = CLI::detail::lexical_cast(text, value);
        // Written so that NaN fails.
        if (number && value >= low && value <= high) return std::string();
        return fmt::format("{} is not a number from {} to {}", text, low, high);
    };
    return CLI::Validator(check, fmt::format("{}..{}", low, high));
}

} // namespace innerkv::cli
