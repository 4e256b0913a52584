// SPDX-License-Identifier: Apache-2.0
// `innerkv plan`: memory of a model's cache before it exists.
#include <memory>

#include <fmt/format.h>

#include "commands.h"
#include "errors.h"
#include "innerkv/plan.h"
#include "options.h"
#include "output.h"
#include "runner/runner.h"
#include "utf8.h"

namespace innerkv::cli {
namespace {

constexpr int kMostTokens = 1 << 30;
constexpr int kMostSequences = 1 << 20;

struct PlanOptions {
    std::string model;
    int context = 0;
    int batch = 1;
    std::string presets; ///< empty: all, or with a calibration what it is for
    std::string calibration;
    bool json = false;
};

struct PlanRow {
    std::string preset;
    double bits_per_value = 0;
    std::size_t bytes = 0;          ///< of all sequences, each `context` tokens long
    std::size_t reserved_bytes = 0; ///< what pools of that size take, prompt chunks included
    std::size_t f16_bytes = 0;
};

using CalibrationPtr = std::shared_ptr<const runner::Calibration>;

PlanRow plan_preset(const runner::ModelInfo& info, const PlanOptions& options,
                    const std::string& preset, const CalibrationPtr& calibration) {
    runner::SessionOptions session = runner::make_options(preset, options.context);
    session.calibration = calibration;
    CacheConfig config = runner::cache_config(info, session);
    config.max_sequences = options.batch;
    config.max_tokens = std::int64_t{options.context} * options.batch;
    const auto batch = static_cast<std::size_t>(options.batch);
    PlanRow row;
    row.preset = preset;
    row.bits_per_value = config.bits_per_value();
    row.bytes = batch * sequence_bytes(config, options.context);
    row.f16_bytes = batch * f16_sequence_bytes(config, options.context);
    row.reserved_bytes = plan_cache(config).total();
    return row;
}

double ratio_to_f16(const PlanRow& row) {
    return static_cast<double>(row.f16_bytes) / static_cast<double>(row.bytes);
}

double bytes_per_token(const PlanRow& row, const PlanOptions& options) {
    return static_cast<double>(row.bytes) / options.context / options.batch;
}

Json to_json(const runner::ModelInfo& info, const PlanOptions& options,
             const std::vector<PlanRow>& rows) {
    Json results = Json::array();
    for (const PlanRow& row : rows)
        results.push_back({{"cache", row.preset},
                           {"bits_per_value", row.bits_per_value},
                           {"bytes", row.bytes},
                           {"bytes_per_token", bytes_per_token(row, options)},
                           {"bytes_f16", row.f16_bytes},
                           {"ratio", ratio_to_f16(row)},
                           {"reserved_bytes", row.reserved_bytes}});
    return {{"model", info.path},
            {"context", options.context},
            {"batch", options.batch},
            {"calibration", options.calibration},
            {"results", results}};
}

std::string to_text(const runner::ModelInfo& info, const PlanOptions& options,
                    const std::vector<PlanRow>& rows) {
    std::string text = fmt::format("{}: {} tokens", printable(info.name), options.context);
    if (options.batch > 1) text += fmt::format(" x {} sequences", options.batch);
    text += fmt::format("; an f16 cache takes {}\n", format_bytes(rows.front().f16_bytes));
    Table table({"cache", "bits a value", "total", "a token", "smaller", "reserved"});
    for (const PlanRow& row : rows)
        table.add({row.preset, fmt::format("{:.2f}", row.bits_per_value), format_bytes(row.bytes),
                   format_bytes(static_cast<std::uint64_t>(bytes_per_token(row, options))),
                   fmt::format("{:.2f}x", ratio_to_f16(row)), format_bytes(row.reserved_bytes)});
    return text + table.text();
}

int plan(const PlanOptions& options) {
    const runner::ModelInfo info = runner::inspect_model(options.model);
    check_context("--context", options.context, info);
    const std::string usual =
        options.calibration.empty() ? preset_names() : std::string(presets().front().name);
    const std::string& chosen = options.presets.empty() ? usual : options.presets;
    const CalibrationPtr calibration = read_calibration(options.calibration, chosen, kOwnCodec);
    if (calibration) runner::check_shape(*calibration, info);
    std::vector<PlanRow> rows;
    for (const std::string& preset : split_list(chosen))
        rows.push_back(plan_preset(info, options, preset, calibration));
    if (options.json)
        write_json(to_json(info, options, rows));
    else
        write_output(to_text(info, options, rows));
    return kSuccess;
}

} // namespace

void add_plan_command(CLI::App& app, Action& action) {
    auto options = std::make_shared<PlanOptions>();
    CLI::App* command = app.add_subcommand("plan", "Tell a cache's memory before it exists");
    add_model_option(*command, options->model);
    command->add_option("--context", options->context, "Tokens of each sequence")
        ->type_name("N")
        ->required()
        ->check(whole_range(1, kMostTokens));
    command->add_option("--batch", options->batch, "Sequences")
        ->type_name("B")
        ->check(whole_range(1, kMostSequences))
        ->capture_default_str();
    add_presets_option(*command, options->presets,
                       "Presets to compare; all by default, with --calibration base");
    add_calibration_option(*command, options->calibration);
    add_json_option(*command, options->json);
    command->footer("Examples:\n"
                    "  innerkv plan -m model.gguf --context 8192\n"
                    "  innerkv plan -m model.gguf --context 4096 --batch 16 --cache base,k4v4,f16");
    command->callback([options, &action] { action = [options] { return plan(*options); }; });
}

} // namespace innerkv::cli
