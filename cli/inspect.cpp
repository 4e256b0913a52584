// SPDX-License-Identifier: Apache-2.0
// `innerkv inspect`: what a model or a calibration says about itself.
#include <algorithm>
#include <memory>

#include <fmt/format.h>

#include "calibration_report.h"
#include "commands.h"
#include "errors.h"
#include "options.h"
#include "output.h"
#include "runner/runner.h"

namespace innerkv::cli {
namespace {

struct InspectOptions {
    std::string path;
    bool json = false;
};

/// "none", "512 tokens in 15 of 18 layers".
std::string describe_windows(const runner::ModelInfo& info) {
    const auto windowed =
        std::ranges::count_if(info.sliding_window, [](int window) { return window > 0; });
    if (windowed == 0) return "none";
    return fmt::format("{} tokens in {} of {} layers", std::ranges::max(info.sliding_window),
                       windowed, info.layers);
}

Json to_json(const runner::ModelInfo& info) {
    return {{"path", info.path},
            {"name", info.name},
            {"architecture", info.architecture},
            {"weight_type", info.weight_type},
            {"file_bytes", info.file_bytes},
            {"parameters", info.parameters},
            {"layers", info.layers},
            {"q_heads", info.q_heads},
            {"kv_heads", info.kv_heads},
            {"head_dim", info.head_dim},
            {"embedding_dim", info.embedding_dim},
            {"vocabulary_size", info.vocabulary_size},
            {"context_length", info.context_length},
            {"sliding_window", info.sliding_window},
            {"has_chat_template", info.has_chat_template}};
}

std::string to_text(const runner::ModelInfo& info) {
    const NamedLine lines[] = {
        {"file", info.path},
        {"size", format_bytes(info.file_bytes)},
        {"name", info.name},
        {"architecture", info.architecture},
        {"weights", fmt::format("{}, {:.1f} million parameters", info.weight_type,
                                static_cast<double>(info.parameters) / 1e6)},
        {"layers", std::to_string(info.layers)},
        {"heads", fmt::format("{} query, {} key-value, dimension {}", info.q_heads, info.kv_heads,
                              info.head_dim)},
        {"embedding", std::to_string(info.embedding_dim)},
        {"vocabulary", fmt::format("{} tokens", info.vocabulary_size)},
        {"context", fmt::format("{} tokens", info.context_length)},
        {"sliding window", describe_windows(info)},
        {"chat template", info.has_chat_template ? "yes" : "no"},
    };
    return named_lines(lines);
}

int inspect(const InspectOptions& options) {
    if (options.path.ends_with(".ikv"))
        throw Failure(fmt::format("{}: this version inspects GGUF files only", options.path));
    const auto show = [&](const Json& json, const std::string& text) {
        if (options.json)
            write_json(json);
        else
            write_output(text);
    };
    if (runner::is_calibration(options.path)) {
        const auto calibration = runner::read_calibration(options.path);
        show(cli::to_json(*calibration), cli::to_text(*calibration));
    } else {
        const runner::ModelInfo info = runner::inspect_model(options.path);
        show(to_json(info), to_text(info));
    }
    return kSuccess;
}

} // namespace

void add_inspect_command(CLI::App& app, Action& action) {
    auto options = std::make_shared<InspectOptions>();
    CLI::App* command = app.add_subcommand("inspect", "Show what a model or a calibration holds");
    command->add_option("file", options->path, "GGUF model or calibration")
        ->type_name("FILE")
        ->required()
        ->check(file_name());
    add_json_option(*command, options->json);
    command->footer("Examples:\n"
                    "  innerkv inspect model.gguf\n"
                    "  innerkv inspect model.gguf --json");
    command->callback([options, &action] { action = [options] { return inspect(*options); }; });
}

} // namespace innerkv::cli
