// SPDX-License-Identifier: Apache-2.0
// `innerkv eval`: what a cache costs in quality.
#include "eval.h"

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "innerkv/attention.h"
#include "innerkv/format.h"
#include "interrupt.h"
#include "journal.h"
#include "progress.h"
#include "reading.h"
#include "text_file.h"

namespace innerkv::cli {
namespace {

constexpr int kLongestContext = 1 << 24;
constexpr int kMostDocuments = 1 << 20;

std::vector<std::string> contestants(const EvalOptions& options) {
    std::vector<std::string> caches = split_list(options.caches);
    caches.insert(caches.begin(), options.against);
    return caches;
}

/// What is measured, and on what. Not the threads: nobody should lose finished windows for going on with fewer, and
/// sums of another order move a mean by less than another window does.
Json journal_header(const EvalOptions& options, const EvalInput& input, const Json& specific) {
    const runner::ModelInfo& info = input.model->info();
    Json header = {
        {"innerkv", options.name},
        {"version", INNERKV_VERSION},
        {"model_name", info.name},
        {"model_bytes", info.file_bytes},
        {"model_fingerprint", file_fingerprint(options.model)},
        {"text_fingerprint", input.text_fingerprint},
        {"against", options.against},
        {"cache", options.caches},
        {"ctx", options.context},
        {"codec", options.codec},
        {"key_norm", options.key_norm},
        {"calibration", options.calibration.empty() ? "" : file_fingerprint(options.calibration)},
        {"arithmetic", options.arithmetic},
        {"isa", select_isa(options.isa)}};
    header.update(specific);
    return header;
}

void require_svg(CLI::Option& option) {
    option.type_name("FILE.svg")->check(accepted_by([](const std::string& path) {
        if (!path.ends_with(".svg"))
            throw CLI::ValidationError(path + " is not the name of an .svg file, the one format "
                                              "there is; tools such as rsvg-convert make others",
                                       0);
    }));
}

} // namespace

void add_eval_options(CLI::App& command, EvalOptions& options, const std::string& context,
                      int shortest_context) {
    options.caches = std::string(presets().front().name);
    add_model_option(command, options.model);
    command.add_option("--text", options.text, "UTF-8 text, - for standard input")
        ->type_name("FILE")
        ->required()
        ->check(file_name());
    command.add_option("--ctx", options.context, context)
        ->type_name("N")
        ->check(whole_range(shortest_context, kLongestContext))
        ->capture_default_str();
    add_contenders_option(command, options.caches, "Contenders to measure");
    add_contender_option(command, "--against", options.against, "The reference");
    add_codec_option(command, options.codec);
    command
        .add_option(
            "--arithmetic", options.arithmetic,
            "integer: int8 queries and uint8 probabilities; exact: fp32 on the cache's codes")
        ->check(CLI::IsMember({"integer", "exact"}))
        ->capture_default_str();
    add_key_norm_option(command, options.key_norm);
    add_calibration_option(command, options.calibration)->excludes("--key-norm");
    add_threads_option(command, options.threads, "Threads; all cores by default");
    add_isa_option(command, options.isa, "Instruction set of the kernels");
    add_json_option(command, options.json);
    require_svg(*command.add_option("--plot", options.plot, "Draw the result"));
    command
        .add_option("--resume", options.resume,
                    "Keep what is done in this file; a run with the same options goes on there")
        ->type_name("FILE")
        ->check(file_name());
}

void add_documents_option(CLI::App& command, int& documents, int usual) {
    command
        .add_option("--documents", documents,
                    fmt::format("Stretches of the text to measure; up to {} by default", usual))
        ->type_name("N")
        ->check(whole_range(1, kMostDocuments));
}

EvalInput read_input(const EvalOptions& options) {
    const NamedFile model{"the model", options.model};
    const NamedFile text{"the text", options.text};
    const NamedFile calibration{"the calibration", options.calibration};
    if (!options.resume.empty())
        protect_inputs("--resume", options.resume, {model, text, calibration});
    if (!options.plot.empty()) {
        protect_inputs("--plot", options.plot,
                       {model, text, calibration, {"what is done", options.resume}});
        require_writable(options.plot);
    }
    EvalInput input;
    // Before a model is read: options that contradict each other.
    for (const std::string& cache : contestants(options))
        session_options(cache, 1, options.key_norm, options.codec);
    // An exact reference has no key transform that the file could replace.
    const bool exact = !session_options(options.against, 1, {}, options.codec).preset.k.quantized();
    input.calibration = read_calibration(
        options.calibration, exact ? options.caches : options.caches + "," + options.against,
        options.codec);
    const std::string contents = read_text(options.text);
    input.model = load_model(options.model, options.context);
    input.tokens = input.model->tokenize(contents, false, false);
    input.text_fingerprint = runner::hash_of(contents);
    catch_interrupts();
    return input;
}

std::vector<runner::Token> EvalInput::opened(std::size_t begin, std::size_t count) const {
    return cli::opened(*model, std::span(tokens).subspan(begin, count));
}

std::int64_t Evaluation::count_done(std::size_t count) const {
    return std::count_if(items.begin(), items.begin() + static_cast<std::ptrdiff_t>(count),
                         [](const std::vector<Standing>& item) { return !item.empty(); });
}

std::vector<CacheScore> Evaluation::scores(std::size_t count) const {
    std::vector<std::vector<Standing>> finished;
    for (std::size_t item = 0; item < count; ++item)
        if (done(item)) finished.push_back(items[item]);
    return sum_up(caches, finished);
}

Evaluation evaluate(const EvalOptions& options, const EvalInput& input, const Json& specific,
                    const std::vector<EvalItem>& items) {
    const std::vector<std::string> caches = contestants(options);
    std::vector<std::size_t> rows;
    rows.reserve(items.size());
    for (const EvalItem& item : items) rows.push_back(item.rows);
    ContestOptions contest;
    contest.context = options.context;
    contest.threads = options.threads;
    contest.isa = options.isa;
    contest.key_norm = options.key_norm;
    contest.codec = options.codec;
    contest.calibration = input.calibration;
    contest.arithmetic = options.arithmetic == "exact" ? Arithmetic::exact : Arithmetic::integer;
    std::optional<Progress> bar;
    const auto counter = [&bar](std::int64_t done) {
        if (bar) bar->update(done);
        return !interrupted();
    };
    // Before the file is made: it refuses what the options cannot mean.
    Contest sessions(input.model, caches, contest, counter);
    Evaluation result{sessions.formats(), sessions.threads(), {}};
    Journal journal(options.resume,
                    options.resume.empty() ? Json() : journal_header(options, input, specific),
                    rows, caches.size());
    std::int64_t tokens = 0;
    for (std::size_t item = 0; item < items.size(); ++item)
        if (!journal.find(item)) tokens += items[item].tokens;
    bar.emplace(options.name, "tokens", static_cast<std::int64_t>(caches.size()) * tokens);
    result.items.resize(items.size());
    for (std::size_t item = 0; item < items.size(); ++item) {
        if (!journal.find(item) && !interrupted()) {
            sessions.clear();
            if (items[item].measure(sessions)) journal.add(item, sessions.standings());
        }
        if (const std::vector<Standing>* standings = journal.find(item))
            result.items[item] = *standings;
    }
    return result;
}

void add_eval_command(CLI::App& app, Action& action) {
    CLI::App* command = app.add_subcommand("eval", "Measure quality");
    command->require_subcommand(1);
    command->footer("innerkv eval ppl --help has examples, as have the others.");
    add_eval_ppl(*command, action);
    add_eval_recall(*command, action);
    add_eval_repeat(*command, action);
    add_eval_long(*command, action);
}

} // namespace innerkv::cli
