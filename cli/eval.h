// SPDX-License-Identifier: Apache-2.0
// What the measurements of `innerkv eval` share: options, items that are measured one by one and kept,
// and how results are shown.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "chart.h"
#include "commands.h"
#include "contest.h"
#include "options.h"
#include "output.h"
#include "score.h"

namespace innerkv::cli {

struct EvalOptions {
    std::string name; ///< of the command, "eval ppl"
    std::string model;
    std::string text;
    int context = 2048;
    std::string caches;
    std::string against = "f16";
    std::string codec = kOwnCodec;
    std::string isa;
    std::string key_norm;
    std::string calibration; ///< a file; empty: none
    std::string arithmetic = "integer";
    int threads = 0;
    bool json = false;
    std::string plot;   ///< empty: none
    std::string resume; ///< empty: nothing is kept
};

/// Options that all measurements have; `context` tells what --ctx is here.
void add_eval_options(CLI::App& command, EvalOptions& options, const std::string& context,
                      int shortest_context);
/// --documents: how many stretches of the text are measured; `usual` by default, where it has them.
void add_documents_option(CLI::App& command, int& documents, int usual);

struct EvalInput {
    std::shared_ptr<runner::Model> model;
    std::vector<runner::Token> tokens; ///< of the text
    std::string text_fingerprint;
    std::shared_ptr<const runner::Calibration> calibration; ///< null: none

    /// `count` tokens of the text, the first replaced by the one that the model's texts begin with, if it has one.
    std::vector<runner::Token> opened(std::size_t begin, std::size_t count) const;
};

/// Throws Failure where the model or the text cannot be read or the plot could not be written, UsageError where
/// --ctx is beyond the model's.
EvalInput read_input(const EvalOptions& options);

/// What is measured as a whole, and lost as a whole where the run is stopped inside.
struct EvalItem {
    std::int64_t tokens = 0;               ///< that each cache processes, for the progress bar
    std::size_t rows = 0;                  ///< that it scores; none where text is generated
    std::function<bool(Contest&)> measure; ///< false: stopped
};

struct Evaluation {
    std::vector<CacheFormat> caches; ///< the reference first
    int threads = 0;
    std::vector<std::vector<Standing>> items; ///< [items][caches]; empty where not done

    bool done(std::size_t item) const { return !items[item].empty(); }
    /// The first `count` items' scores, of those that are done.
    std::vector<CacheScore> scores(std::size_t count) const;
    std::int64_t count_done(std::size_t count) const;
};

/// Measures items that the file of --resume does not have, in order. `specific` are the command's own
/// options, for that file.
Evaluation evaluate(const EvalOptions& options, const EvalInput& input, const Json& specific,
                    const std::vector<EvalItem>& items);

/// Model, text, options; `specific` among them.
Json run_json(const EvalOptions& options, const Evaluation& evaluation, const Json& specific);
/// run_json(), the reference's score as `against`, the others' as `results`; extra(i) is added to that of cache i.
Json report_json(const EvalOptions& options, const Evaluation& evaluation, const Json& specific,
                 const std::vector<CacheScore>& scores,
                 const std::function<Json(std::size_t cache)>& extra);
/// "3 windows of 2048 tokens, " and what comes of them, a line.
std::string head_line(std::int64_t count, const std::string& noun, std::size_t length,
                      const std::string& what);
/// "3072 tokens; f16 has perplexity 18.6043"
std::string reference_text(const CacheScore& reference);
std::string score_table(const std::vector<CacheScore>& scores);

/// What a curve by position shows.
struct Positions {
    std::size_t length = 0; ///< rows of an item, the first of them at position `first`
    std::int64_t first = 0;
    std::string title;
    std::string x_label;
};
Json by_position_json(const CacheScore& score, const Positions& positions);
/// Mean KLD from the reference, `scores` beginning with the reference's.
std::string draw_by_position(const std::vector<CacheScore>& scores, const Positions& positions);

/// Rows of such caches tell nothing about their formats.
void warn_of_unquantized(const EvalOptions& options, const std::vector<CacheScore>& scores);

/// What a measurement found; the plot is drawn where it is asked for.
struct EvalReport {
    std::function<Json()> json;
    std::function<std::string()> text;
    std::function<std::string()> plot;
};
int show(const EvalOptions& options, const EvalReport& report);
/// "interrupted before the first window was done"; in JSON all fields, `against` null and no results.
int show_nothing(const EvalOptions& options, const Evaluation& evaluation, const Json& specific,
                 const std::string& noun);

void add_eval_ppl(CLI::App& parent, Action& action);
void add_eval_recall(CLI::App& parent, Action& action);
void add_eval_repeat(CLI::App& parent, Action& action);
void add_eval_long(CLI::App& parent, Action& action);

} // namespace innerkv::cli
