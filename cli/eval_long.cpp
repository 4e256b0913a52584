// SPDX-License-Identifier: Apache-2.0
// `innerkv eval long`: a whole document by position, and how long a text that the cache goes on with
// alone stays the reference's.
#include <memory>

#include <fmt/format.h>

#include "chart.h"
#include "errors.h"
#include "eval.h"
#include "reading.h"

namespace innerkv::cli {
namespace {

constexpr int kShortestContext = 128;

constexpr int kUsualDocuments = 1;

constexpr const char* kExamples =
    R"(Every token of a document of --ctx tokens is scored. Then each cache goes on alone, taking the
most likely token, from --starts places of it: how many tokens until it differs from the reference?

Examples:
  innerkv eval long -m model.gguf --text tests/data/alice.txt --ctx 384 --starts 2 --generate 16
  innerkv eval long -m model.gguf --text tests/data/wikitext-small.txt --ctx 512 --starts 1 \
      --generate 8 --cache base,k4v4 --json)";

struct LongOptions : EvalOptions {
    int documents = 0; ///< 0: up to kUsualDocuments
    int starts = 4;
    int generate = 64;
};

/// Where text is generated: documents, in each from place to place.
struct Start {
    int document = 0;
    int position = 0;
};

std::vector<Start> make_starts(const LongOptions& options, int documents) {
    std::vector<Start> starts;
    const auto last = static_cast<std::int64_t>(options.context - options.generate);
    for (int document = 0; document < documents; ++document)
        for (int start = 1; start <= options.starts; ++start)
            starts.push_back({document, static_cast<int>(last * start / options.starts)});
    return starts;
}

std::vector<EvalItem> make_items(const LongOptions& options, const EvalInput& input, int documents,
                                 const std::vector<Start>& starts) {
    const auto length = static_cast<std::size_t>(options.context);
    std::vector<EvalItem> items;
    for (int document = 0; document < documents; ++document) {
        const auto tokens = input.opened(static_cast<std::size_t>(document) * length, length);
        items.push_back({options.context - 1, length - 1,
                         [tokens](Contest& contest) { return contest.score(tokens, 1); }});
    }
    for (const Start& start : starts) {
        const auto tokens = input.opened(static_cast<std::size_t>(start.document) * length,
                                         static_cast<std::size_t>(start.position));
        const int count = options.generate;
        // From the beginning each time: a quantized cache that is cut back is not what it was.
        items.push_back({start.position + count, 0, [tokens, count](Contest& contest) {
                             return contest.read(tokens) && contest.generate(count);
                         }});
    }
    return items;
}

/// One cache's generated texts.
struct Course {
    Json starts = Json::array();
    int finished = 0;
    int same = 0;         ///< never differed
    double agreement = 0; ///< mean share of a text before it differs
};

Course course_of(const Evaluation& evaluation, const std::vector<Start>& starts,
                 std::size_t documents, std::size_t cache) {
    Course course;
    for (std::size_t index = 0; index < starts.size(); ++index) {
        if (!evaluation.done(documents + index)) continue;
        const Standing& standing = evaluation.items[documents + index][cache];
        const bool same = standing.common == standing.generated;
        course.starts.push_back({{"document", starts[index].document},
                                 {"start", starts[index].position},
                                 {"generated", standing.generated},
                                 {"first_divergence", same ? Json() : Json(standing.common)}});
        course.finished += 1;
        course.same += same ? 1 : 0;
        course.agreement +=
            static_cast<double>(standing.common) / static_cast<double>(standing.generated);
    }
    if (course.finished > 0) course.agreement /= course.finished;
    return course;
}

struct LongResult {
    std::int64_t documents = 0;
    std::vector<CacheScore> scores;
    std::vector<Course> courses; ///< [caches]
};

Positions positions_of(const LongOptions& options) {
    return {static_cast<std::size_t>(options.context) - 1, 1,
            fmt::format("Divergence from {} by position", options.against),
            "position in the document, tokens"};
}

Json to_json(const LongOptions& options, const Evaluation& evaluation, const LongResult& result) {
    const auto extra = [&](std::size_t cache) {
        Json json = {
            {"by_position", by_position_json(result.scores[cache], positions_of(options))}};
        if (cache == 0) return json;
        const Course& course = result.courses[cache];
        json["generation"] = {{"tokens", options.generate},
                              {"agreement", course.finished > 0 ? Json(course.agreement) : Json()},
                              {"same", course.same},
                              {"starts", course.starts}};
        return json;
    };
    return report_json(options, evaluation, {{"documents", result.documents}}, result.scores,
                       extra);
}

std::string course_text(const LongOptions& options, const LongResult& result) {
    Table table({"cache", "texts", "never differ", "agreement", "first difference at"});
    for (std::size_t index = 1; index < result.scores.size(); ++index) {
        const Course& course = result.courses[index];
        std::string positions;
        for (const Json& start : course.starts) {
            const Json& position = start["first_divergence"];
            positions.append(positions.empty() ? "" : " ")
                .append(position.is_null() ? "-" : position.dump());
        }
        table.add({result.scores[index].cache, std::to_string(course.finished),
                   std::to_string(course.same), fmt::format("{:.1f}%", 100.0 * course.agreement),
                   positions});
    }
    return fmt::format("\nTexts of {} tokens, each cache alone, against {}'s\n", options.generate,
                       options.against) +
           table.text();
}

std::string to_text(const LongOptions& options, const LongResult& result) {
    const std::string head =
        head_line(result.documents, "document", static_cast<std::size_t>(options.context),
                  "all scored: " + reference_text(result.scores.front()));
    const bool generated = result.courses.front().finished > 0;
    return head + score_table(result.scores) + (generated ? course_text(options, result) : "");
}

int eval_long(const LongOptions& options) {
    if (options.starts > 0 && options.context < options.generate + kShortestContext / 2)
        throw UsageError(fmt::format("--ctx {} leaves no text before the {} tokens of --generate; "
                                     "choose a larger --ctx or a smaller --generate",
                                     options.context, options.generate));
    const int places = options.context - options.generate;
    if (options.starts > 0 && options.starts > places)
        throw UsageError(fmt::format("--starts {}: a document of {} tokens has {} places with {} "
                                     "tokens behind them; choose fewer, or a larger --ctx",
                                     options.starts, options.context, places, options.generate));
    const EvalInput input = read_input(options);
    const auto length = static_cast<std::size_t>(options.context);
    const int documents = choose_stretches(options.text, input.tokens.size(), options.documents,
                                           {"document", length, {}, kUsualDocuments});
    const auto count = static_cast<std::size_t>(documents);
    const std::vector<Start> starts = make_starts(options, documents);
    const Evaluation evaluation = evaluate(
        options, input,
        {{"documents", documents}, {"starts", options.starts}, {"generate", options.generate}},
        make_items(options, input, documents, starts));
    LongResult result;
    result.documents = evaluation.count_done(count);
    if (result.documents == 0)
        return show_nothing(options, evaluation, {{"documents", 0}}, "document");
    result.scores = evaluation.scores(count);
    for (std::size_t cache = 0; cache < result.scores.size(); ++cache)
        result.courses.push_back(course_of(evaluation, starts, count, cache));
    warn_of_unquantized(options, result.scores);
    return show(options, {[&] { return to_json(options, evaluation, result); },
                          [&] { return to_text(options, result); },
                          [&] { return draw_by_position(result.scores, positions_of(options)); }});
}

} // namespace

void add_eval_long(CLI::App& parent, Action& action) {
    auto options = std::make_shared<LongOptions>();
    CLI::App* command = parent.add_subcommand(
        "long", "A whole document by position, and texts that each cache writes alone");
    options->name = "eval long";
    add_eval_options(*command, *options, "Tokens of a document", kShortestContext);
    add_documents_option(*command, options->documents, kUsualDocuments);
    command->add_option("--starts", options->starts, "Places of a document where text is generated")
        ->type_name("N")
        ->check(whole_range(0, 4096))
        ->capture_default_str();
    command->add_option("--generate", options->generate, "Tokens to generate there")
        ->type_name("N")
        ->check(whole_range(1, 1 << 20))
        ->capture_default_str();
    command->footer(kExamples);
    on_chosen(*command, action, options, options->threads, eval_long);
}

} // namespace innerkv::cli
