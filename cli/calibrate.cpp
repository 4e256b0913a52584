// SPDX-License-Identifier: Apache-2.0
// `innerkv calibrate`: a model's static key transform, taken from a text.
#include <memory>

#include <fmt/format.h>

#include "calibration_report.h"
#include "commands.h"
#include "errors.h"
#include "interrupt.h"
#include "log.h"
#include "options.h"
#include "output.h"
#include "progress.h"
#include "reading.h"
#include "runner/calibrator.h"
#include "text_file.h"

namespace innerkv::cli {
namespace {

constexpr int kShortestWindow = 256;
constexpr int kLongestWindow = 1 << 24;
constexpr int kUsualWindows = 8;

constexpr const char* kExamples =
    R"(Takes norm and centre of every channel of the keys, and writes them to a file that belongs to this
one model file. With it, sequences need no calibration of their own.

Examples:
  innerkv calibrate -m model.gguf --text tests/data/wikitext-small.txt --ctx 512 --chunks 2 \
      -o "${TMPDIR:-/tmp}/calibration.gguf"
  innerkv run -m model.gguf -p "Name three colours." -n 8 \
      --calibration "${TMPDIR:-/tmp}/calibration.gguf"
  innerkv inspect "${TMPDIR:-/tmp}/calibration.gguf" --json)";

struct CalibrateOptions {
    std::string model;
    std::string text;
    std::string output;
    int window = 2048;
    int windows = 0; ///< 0: as many as the text has, up to kUsualWindows
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

Json to_json(const CalibrateOptions& options, const runner::Calibration& calibration, int windows,
             int threads) {
    Json json = {{"model_file", options.model}, {"text", options.text}, {"output", options.output},
                 {"ctx", options.window},       {"chunks", windows},    {"threads", threads}};
    json.update(cli::to_json(calibration));
    return json;
}

int calibrate(const CalibrateOptions& options) {
    protect_inputs("-o", options.output,
                   {{"the model", options.model}, {"the text", options.text}});
    runner::require_writable(options.output);
    const std::string text = read_text(options.text);
    const std::shared_ptr<runner::Model> model = load_model(options.model, options.window);
    const std::vector<runner::Token> tokens = model->tokenize(text, false, false);
    const int windows =
        choose_stretches(options.text, tokens.size(), options.windows,
                         {"window", static_cast<std::size_t>(options.window), {}, kUsualWindows});
    runner::Calibrator calibrator(model, options.window, options.threads);
    catch_interrupts();
    if (!walk(calibrator, *model, tokens, options.window, windows)) {
        log_error(fmt::format("interrupted; {} was not written", options.output));
        return kInterrupted;
    }
    runner::Calibration calibration = calibrator.result();
    calibration.text_hash = runner::hash_of(text);
    runner::write_calibration(calibration, options.output);
    if (options.json)
        write_json(to_json(options, calibration, windows, calibrator.threads()));
    else
        write_output(fmt::format("{}\n{}", options.output, to_text(calibration)));
    return kSuccess;
}

} // namespace

void add_calibrate_command(CLI::App& app, Action& action) {
    auto options = std::make_shared<CalibrateOptions>();
    CLI::App* command = app.add_subcommand(
        "calibrate", "Take a model's key transform from a text, once for all sequences");
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
                     fmt::format("Windows to read; up to {} by default", kUsualWindows))
        ->type_name("N")
        ->check(whole_range(1, kLongestWindow));
    add_threads_option(*command, options->threads, "Threads; all cores by default");
    add_json_option(*command, options->json);
    command->footer(kExamples);
    on_chosen(*command, action, options, options->threads, calibrate);
}

} // namespace innerkv::cli
