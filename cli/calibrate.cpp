// SPDX-License-Identifier: Apache-2.0
// `innerkv calibrate`: a model's static key transform, or the bits of each layer, taken from a text.
#include <memory>
#include <optional>

#include <fmt/format.h>

#include "calibration_report.h"
#include "commands.h"
#include "errors.h"
#include "interrupt.h"
#include "log.h"
#include "options.h"
#include "output.h"
#include "precision.h"
#include "progress.h"
#include "reading.h"
#include "runner/calibrator.h"
#include "text_file.h"

namespace innerkv::cli {
namespace {

constexpr int kShortestWindow = 256;
constexpr int kLongestWindow = 1 << 24;
constexpr int kUsualWindows = 8;
constexpr int kUsualWindowsOfBits = 2;
/// Of any head dimension; a model's own limits are told when it is known.
constexpr double kLeastBits = 1;
constexpr double kMostBits = 16;

constexpr const char* kExamples =
    R"(Takes norm and centre of every channel of the keys, and writes them to a file that belongs to this
one model file. With it, sequences need no calibration of their own.

With --bits it measures instead what 2 bits cost the keys and the values of each layer, and writes 2, 3 or 4
for each, so that the predictions change least. It reads the text twice for every layer.

Examples:
  innerkv calibrate -m model.gguf --text tests/data/wikitext-small.txt --ctx 512 --chunks 2 \
      -o "${TMPDIR:-/tmp}/calibration.gguf"
  innerkv run -m model.gguf -p "Name three colours." -n 8 \
      --calibration "${TMPDIR:-/tmp}/calibration.gguf"
  innerkv inspect "${TMPDIR:-/tmp}/calibration.gguf" --json
  innerkv calibrate -m model.gguf --text tests/data/wikitext-small.txt --ctx 320 --chunks 1 --bits 3 \
      -o "${TMPDIR:-/tmp}/layers.gguf"
  innerkv plan -m model.gguf --context 8192 --calibration "${TMPDIR:-/tmp}/layers.gguf")";

struct CalibrateOptions {
    std::string model;
    std::string text;
    std::string output;
    int window = 2048;
    int windows = 0; ///< 0: as many as the text has, up to kUsualWindows
    double bits = 0; ///< a value; 0: a key transform is taken, not bits
    std::string
        calibration; ///< with bits: a key transform to measure with and to keep; empty: none
    int threads = 0;
    bool json = false;
};

/// False: interrupted.
bool walk(runner::Calibrator& calibrator, const runner::Model& model,
          std::span<const runner::Token> tokens, int window, int windows) {
    const std::int64_t total = std::int64_t{windows} * window;
    Progress bar("calibrate", "tokens", total);
    for (int i = 0; i < windows; ++i) {
        const std::int64_t before = std::int64_t{i} * window;
        const std::vector<runner::Token> part =
            opened(model, tokens.subspan(static_cast<std::size_t>(before),
                                         static_cast<std::size_t>(window)));
        const auto progress = [&](std::int64_t done, std::int64_t) {
            bar.update(before + done);
            return !interrupted();
        };
        if (!calibrator.add(part, progress)) return false;
    }
    return true;
}

/// What a command line asks of a text.
struct Task {
    std::shared_ptr<runner::Model> model;
    std::vector<runner::Token> tokens; ///< whole windows
    int windows = 0;
    std::shared_ptr<const runner::Calibration> transforms; ///< null: none was given
};

struct Outcome {
    runner::Calibration calibration;
    std::optional<Sensitivity> sensitivity; ///< where bits were chosen
};

/// Nothing: interrupted.
std::optional<Outcome> take_transform(const CalibrateOptions& options, Task& task) {
    runner::Calibrator calibrator(task.model, options.window, options.threads);
    if (!walk(calibrator, *task.model, task.tokens, options.window, task.windows)) return {};
    return Outcome{calibrator.result(), {}};
}

std::optional<Outcome> take_bits(const CalibrateOptions& options, const Task& task) {
    const int head_dim = task.model->info().head_dim;
    check_bits(head_dim, options.bits);
    std::optional<Sensitivity> sensitivity = measure_sensitivity(
        task.model, task.tokens,
        {.window = options.window, .threads = options.threads, .transforms = task.transforms});
    if (!sensitivity) return {};
    Outcome outcome{task.transforms ? *task.transforms : runner::new_calibration(*task.model), {}};
    const int sink = presets().front().sink_tokens;
    outcome.calibration.tokens = std::int64_t{task.windows} * (options.window - sink);
    outcome.calibration.layer_codecs = choose_codecs(*sensitivity, head_dim, options.bits);
    outcome.sensitivity = std::move(sensitivity);
    return outcome;
}

Json to_json(const CalibrateOptions& options, const Outcome& outcome, int windows) {
    const int threads = options.threads > 0 ? options.threads : runner::available_cores();
    Json json = {{"model_file", options.model}, {"text", options.text}, {"output", options.output},
                 {"ctx", options.window},       {"chunks", windows},    {"threads", threads}};
    json.update(cli::to_json(outcome.calibration));
    if (!outcome.sensitivity) return json;
    Json above = Json::array();
    for (const Sides& layer : outcome.sensitivity->above) above.push_back({layer.k, layer.v});
    json.update({{"kld_at_4_bits", outcome.sensitivity->finest}, {"kld_added_at_2_bits", above}});
    return json;
}

Task read_task(const CalibrateOptions& options, const std::string& text) {
    Task task;
    if (!options.calibration.empty()) {
        auto given =
            std::make_shared<runner::Calibration>(*runner::read_calibration(options.calibration));
        given->layer_codecs.clear(); // others are chosen
        task.transforms = given;
        if (!given->has_transforms())
            throw UsageError(fmt::format("--calibration {}: holds no key transform that bits could "
                                         "be measured with; leave it out",
                                         options.calibration));
    }
    task.model = load_model(options.model, options.window);
    if (task.transforms) runner::check_model(*task.transforms, *task.model);
    task.tokens = task.model->tokenize(text, false, false);
    const int usual = options.bits > 0 ? kUsualWindowsOfBits : kUsualWindows;
    task.windows =
        choose_stretches(options.text, task.tokens.size(), options.windows,
                         {"window", static_cast<std::size_t>(options.window), {}, usual});
    task.tokens.resize(static_cast<std::size_t>(task.windows) *
                       static_cast<std::size_t>(options.window));
    return task;
}

int calibrate(const CalibrateOptions& options) {
    protect_inputs("-o", options.output,
                   {{"the model", options.model},
                    {"the text", options.text},
                    {"the key transform", options.calibration}});
    runner::require_writable(options.output);
    const std::string text = read_text(options.text);
    Task task = read_task(options, text);
    catch_interrupts();
    std::optional<Outcome> outcome =
        options.bits > 0 ? take_bits(options, task) : take_transform(options, task);
    if (!outcome) {
        log_error(fmt::format("interrupted; {} was not written", options.output));
        return kInterrupted;
    }
    runner::Calibration& calibration = outcome->calibration;
    calibration.text_hash = runner::hash_of(text);
    runner::write_calibration(calibration, options.output);
    if (options.json)
        write_json(to_json(options, *outcome, task.windows));
    else
        write_output(fmt::format("{}\n{}", options.output, to_text(calibration)));
    return kSuccess;
}

} // namespace

void add_calibrate_command(CLI::App& app, Action& action) {
    auto options = std::make_shared<CalibrateOptions>();
    CLI::App* command = app.add_subcommand(
        "calibrate",
        "Take a model's key transform, or bits of each layer, from a text, once for all sequences");
    add_model_option(*command, options->model);
    command->add_option("--text", options->text, "UTF-8 text, - for standard input")
        ->type_name("FILE")
        ->required()
        ->check(file_name());
    command->add_option("-o,--output", options->output, "The file to write")
        ->type_name("FILE")
        ->required()
        ->check(file_name());
    command->add_option("--ctx", options->window, "Tokens of a window")
        ->type_name("N")
        ->check(whole_range(kShortestWindow, kLongestWindow))
        ->capture_default_str();
    command
        ->add_option("--chunks", options->windows,
                     fmt::format("Windows to read; up to {} by default, {} with --bits",
                                 kUsualWindows, kUsualWindowsOfBits))
        ->type_name("N")
        ->check(whole_range(1, kLongestWindow));
    CLI::Option* const bits =
        command
            ->add_option("--bits", options->bits,
                         "Bits a value, scales and zero-points counted, that layers share out")
            ->type_name("B")
            ->check(finite_range(kLeastBits, kMostBits));
    add_calibration_option(*command, options->calibration)
        ->description("With --bits: a key transform to measure with, and to keep in the output")
        ->needs(bits);
    add_threads_option(*command, options->threads, "Threads; all cores by default");
    add_json_option(*command, options->json);
    command->footer(kExamples);
    on_chosen(*command, action, options, options->threads, calibrate);
}

} // namespace innerkv::cli
