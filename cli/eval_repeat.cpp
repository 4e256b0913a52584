// SPDX-License-Identifier: Apache-2.0
// `innerkv eval repeat`: a passage that comes a second time, when all that the cache has of the first is
// quantized.
#include <memory>

#include <fmt/format.h>

#include "chart.h"
#include "errors.h"
#include "eval.h"
#include "reading.h"

namespace innerkv::cli {
namespace {

constexpr int kShortestContext = 512;
/// Text before the passage: the sink window and the tokens that key norms are taken from by default, so that they
/// are not taken from what is scored,
constexpr std::size_t kLead = 160;
/// and the least text behind it that moves it out of the recent window.
constexpr int kLeastBetween = 192;

constexpr int kUsualDocuments = 4;

constexpr const char* kExamples =
    R"(Each document of --ctx tokens is a passage of the text, other text, and the passage again. Its
second reading is scored: whoever can look at the first predicts it almost surely.

Examples:
  innerkv eval repeat -m model.gguf --text tests/data/alice.txt --ctx 640 --passage 64 --documents 1
  innerkv eval repeat -m model.gguf --text tests/data/wikitext-small.txt --ctx 640 --passage 128 \
      --documents 2 --cache base,k4v4 --json)";

struct RepeatOptions : EvalOptions {
    int passage = 256;
    int documents = 0; ///< 0: up to kUsualDocuments
};

/// Rows of an item: the passage's first reading, then its second.
EvalItem make_document(const EvalInput& input, std::size_t begin, std::size_t length,
                       std::size_t passage) {
    std::vector<runner::Token> tokens = input.opened(begin, length - passage);
    for (std::size_t index = 0; index < passage; ++index) tokens.push_back(tokens[kLead + index]);
    const auto measure = [tokens, passage](Contest& contest) {
        const std::span<const runner::Token> all(tokens);
        const std::size_t first_end = kLead + passage;
        const std::size_t second = tokens.size() - passage;
        return contest.score(all.first(first_end), kLead) &&
               contest.score(all.subspan(first_end - 1), second - first_end + 1);
    };
    return {static_cast<std::int64_t>(length) - 1, 2 * passage, measure};
}

/// One reading of each item that is done.
std::vector<CacheScore> scores_of(const Evaluation& evaluation, bool second) {
    std::vector<std::vector<Standing>> items;
    for (const std::vector<Standing>& item : evaluation.items) {
        if (item.empty()) continue;
        items.push_back(item);
        for (Standing& standing : items.back()) {
            const auto middle =
                standing.rows.begin() + static_cast<std::ptrdiff_t>(standing.rows.size() / 2);
            standing.rows = second ? std::vector<RowScore>(middle, standing.rows.end())
                                   : std::vector<RowScore>(standing.rows.begin(), middle);
        }
    }
    return sum_up(evaluation.caches, items);
}

struct RepeatResult {
    std::int64_t documents = 0;
    std::vector<CacheScore> first;
    std::vector<CacheScore> second;
};

Positions positions_of(const RepeatOptions& options) {
    return {static_cast<std::size_t>(options.passage), 0,
            fmt::format("Second reading of a passage, {} tokens after the first",
                        options.context - options.passage - static_cast<int>(kLead)),
            "position in the passage, tokens"};
}

Json specific_json(const RepeatOptions& options, std::int64_t documents) {
    return {{"passage", options.passage},
            {"between", options.context - 2 * options.passage - static_cast<int>(kLead)},
            {"documents", documents}};
}

Json to_json(const RepeatOptions& options, const Evaluation& evaluation,
             const RepeatResult& result) {
    const auto extra = [&](std::size_t cache) -> Json {
        return {{"ppl_first", result.first[cache].score.perplexity},
                {"by_position", by_position_json(result.second[cache], positions_of(options))}};
    };
    return report_json(options, evaluation, specific_json(options, result.documents), result.second,
                       extra);
}

std::string to_text(const RepeatOptions& options, const RepeatResult& result) {
    const std::string what =
        fmt::format("their first passage of {} read again at the end; {} has perplexity {:.4f} at "
                    "the first reading, {:.4f} at the second",
                    options.passage, options.against, result.first.front().score.perplexity,
                    result.second.front().score.perplexity);
    return head_line(result.documents, "document", static_cast<std::size_t>(options.context),
                     what) +
           score_table(result.second);
}

int eval_repeat(const RepeatOptions& options) {
    const auto length = static_cast<std::size_t>(options.context);
    const auto passage = static_cast<std::size_t>(options.passage);
    const int least = static_cast<int>(kLead) + 2 * options.passage + kLeastBetween;
    if (options.context < least)
        throw UsageError(fmt::format("--ctx {} is too short for --passage {} twice and {} tokens "
                                     "between, which takes {}; choose a larger --ctx or a smaller "
                                     "--passage",
                                     options.context, options.passage, kLeastBetween, least));
    const EvalInput input = read_input(options);
    const std::string why = fmt::format(" (--ctx {} less the second reading of --passage {})",
                                        options.context, options.passage);
    const int documents = choose_stretches(options.text, input.tokens.size(), options.documents,
                                           {"document", length - passage, why, kUsualDocuments});
    std::vector<EvalItem> items;
    for (std::size_t index = 0; index < static_cast<std::size_t>(documents); ++index)
        items.push_back(make_document(input, index * (length - passage), length, passage));
    const Evaluation evaluation =
        evaluate(options, input, {{"passage", options.passage}, {"documents", documents}}, items);
    const std::int64_t finished = evaluation.count_done(items.size());
    if (finished == 0)
        return show_nothing(options, evaluation, specific_json(options, 0), "document");
    const RepeatResult result{finished, scores_of(evaluation, false), scores_of(evaluation, true)};
    warn_of_unquantized(options, result.second);
    return show(options, {[&] { return to_json(options, evaluation, result); },
                          [&] { return to_text(options, result); },
                          [&] { return draw_by_position(result.second, positions_of(options)); }});
}

} // namespace

void add_eval_repeat(CLI::App& parent, Action& action) {
    auto options = std::make_shared<RepeatOptions>();
    CLI::App* command = parent.add_subcommand(
        "repeat", "Perplexity and divergence where a passage comes a second time");
    options->name = "eval repeat";
    add_eval_options(*command, *options, "Tokens of a document, both readings counted",
                     kShortestContext);
    command->add_option("--passage", options->passage, "Tokens of the passage")
        ->type_name("N")
        ->check(whole_range(16, 1 << 20))
        ->capture_default_str();
    add_documents_option(*command, options->documents, kUsualDocuments);
    command->footer(kExamples);
    on_chosen(*command, action, options, options->threads, eval_repeat);
}

} // namespace innerkv::cli
