// SPDX-License-Identifier: Apache-2.0
// `innerkv eval recall`: facts planted in a text at depths from its beginning to its end, asked for
// behind it.
#include <algorithm>
#include <memory>

#include <fmt/format.h>

#include "chart.h"
#include "errors.h"
#include "eval.h"
#include "innerkv/format.h"
#include "planting.h"
#include "reading.h"

namespace innerkv::cli {
namespace {

constexpr int kShortestContext = 512;
/// Tokens of a question and its answer, the last one left out: see make_item().
constexpr std::size_t kMostAsked = kPageTokens;

constexpr int kUsualDocuments = 4;

constexpr const char* kExamples =
    R"(In each document of --ctx tokens facts with random values are planted in the text and asked for
at its end. An answer is right if every token of the value is the most likely one.

Examples:
  innerkv eval recall -m model.gguf --text tests/data/alice.txt --ctx 768 --depths 3 --documents 1
  innerkv eval recall -m model.gguf --text tests/data/wikitext-small.txt --ctx 768 --depths 5 \
      --documents 2 --cache base,k4v4 --json)";

struct RecallOptions : EvalOptions {
    int depths = 11;
    int documents = 0; ///< 0: up to kUsualDocuments
};

/// Tokens of a document: what --ctx leaves beside a question, whole pages.
std::size_t document_length(const RecallOptions& options) {
    const auto length = static_cast<std::size_t>(options.context) - kMostAsked;
    return length / kPageTokens * kPageTokens;
}

PlantedDocument make_document(const RecallOptions& options, const EvalInput& input,
                              std::size_t index) {
    const std::size_t length = document_length(options);
    std::vector<runner::Token> opening;
    if (const auto bos = input.model->bos()) opening.push_back(*bos);
    const Tokenize tokenize = [&input](const std::string& text) {
        return input.model->tokenize(text, false, false);
    };
    PlantedDocument document =
        plant(std::span(input.tokens).subspan(index * length, length), opening,
              make_facts(options.depths, index), make_depths(options.depths), length, tokenize);
    for (const PlantedFact& fact : document.facts) {
        const std::size_t asked = fact.question.size() + fact.value.size() - 1;
        if (asked > kMostAsked)
            throw Failure(fmt::format("{} takes {} tokens for a question and its answer, more than "
                                      "the {} that leave the document's cache as it is",
                                      input.model->info().name, asked, kMostAsked));
    }
    return document;
}

/// The document ends where a page does: the first token of a question quantizes what the next token of any
/// text would, and no more until it has filled a page. So with windows of whole pages cutting a question off
/// again leaves the document's cache as it was, for every question alike; with others the document is read again.
EvalItem make_item(const PlantedDocument& document) {
    EvalItem item;
    item.tokens = static_cast<std::int64_t>(document.tokens.size());
    for (const PlantedFact& fact : document.facts) {
        item.tokens += static_cast<std::int64_t>(fact.question.size() + fact.value.size()) - 1;
        item.rows += fact.value.size();
    }
    item.measure = [document](Contest& contest) {
        if (!contest.read(document.tokens)) return false;
        for (const PlantedFact& fact : document.facts) {
            std::vector<runner::Token> asked = fact.question;
            asked.insert(asked.end(), fact.value.begin(), fact.value.end());
            if (!contest.score(asked, fact.question.size())) return false;
            if (&fact != &document.facts.back() && !contest.go_back(document.tokens)) return false;
        }
        return true;
    };
    return item;
}

/// Of one depth, or of all.
struct Recall {
    std::int64_t items = 0;
    double accuracy = 0;
    double log_likelihood = 0; ///< mean over values, nats

    void add(std::span<const RowScore> value) {
        ++items;
        accuracy += std::ranges::all_of(value, &RowScore::correct) ? 1 : 0;
        for (const RowScore& row : value) log_likelihood += row.log_likelihood;
    }
    void finish() {
        if (items == 0) return;
        accuracy /= static_cast<double>(items);
        log_likelihood /= static_cast<double>(items);
    }
};

struct CacheRecall {
    CacheScore score;
    Recall all;
    std::vector<Recall> by_depth;
};

CacheRecall sum_up(const Evaluation& evaluation, const std::vector<PlantedDocument>& documents,
                   std::size_t cache, CacheScore score) {
    CacheRecall recall;
    recall.score = std::move(score);
    recall.by_depth.resize(documents.front().facts.size());
    for (std::size_t item = 0; item < documents.size(); ++item) {
        if (!evaluation.done(item)) continue;
        std::span<const RowScore> rows(evaluation.items[item][cache].rows);
        for (std::size_t depth = 0; depth < recall.by_depth.size(); ++depth) {
            const std::size_t tokens = documents[item].facts[depth].value.size();
            recall.by_depth[depth].add(rows.first(tokens));
            recall.all.add(rows.first(tokens));
            rows = rows.subspan(tokens);
        }
    }
    for (Recall& depth : recall.by_depth) depth.finish();
    recall.all.finish();
    return recall;
}

Json to_json(const CacheRecall& recall, const std::vector<double>& depths) {
    Json by_depth = Json::array();
    for (std::size_t depth = 0; depth < depths.size(); ++depth)
        by_depth.push_back({{"depth", depths[depth]},
                            {"accuracy", recall.by_depth[depth].accuracy},
                            {"log_likelihood", recall.by_depth[depth].log_likelihood}});
    return {{"cache", recall.score.cache},
            {"accuracy", recall.all.accuracy},
            {"items", recall.all.items},
            {"log_likelihood", recall.all.log_likelihood},
            {"kld_mean", recall.score.score.divergence_mean},
            {"top1", recall.score.score.same_top},
            {"bits_per_value", recall.score.bits_per_value},
            {"bits_per_value_total", recall.score.bits_per_value_total},
            {"by_depth", by_depth}};
}

struct RecallResult {
    std::int64_t documents = 0;
    std::size_t length = 0;
    std::vector<double> depths;
    std::vector<CacheRecall> caches; ///< the reference first
};

Json to_json(const RecallOptions& options, const Evaluation& evaluation,
             const RecallResult& result) {
    Json json = run_json(options, evaluation, {{"documents", result.documents}});
    json["against"] = to_json(result.caches.front(), result.depths);
    json["results"] = Json::array();
    for (std::size_t index = 1; index < result.caches.size(); ++index)
        json["results"].push_back(to_json(result.caches[index], result.depths));
    return json;
}

std::string to_text(const RecallResult& result) {
    std::vector<std::string> header = {"cache", "right", "log p", "mean KLD"};
    for (const double depth : result.depths) header.push_back(fmt::format("{:.0f}%", 100 * depth));
    Table table(header);
    for (const CacheRecall& recall : result.caches) {
        std::vector<std::string> row = {recall.score.cache,
                                        fmt::format("{:.1f}%", 100 * recall.all.accuracy),
                                        fmt::format("{:.3f}", recall.all.log_likelihood),
                                        fmt::format("{:.5f}", recall.score.score.divergence_mean)};
        for (const Recall& depth : recall.by_depth)
            row.push_back(fmt::format("{:.0f}%", 100 * depth.accuracy));
        table.add(row);
    }
    return head_line(result.documents, "document", result.length,
                     fmt::format("{} facts in each: {} answers a cache", result.depths.size(),
                                 result.caches.front().all.items)) +
           table.text();
}

std::string draw(const RecallResult& result) {
    HeatMap map;
    map.title = fmt::format("Facts recalled from {} tokens", result.length);
    map.x_label = "depth in the document, %";
    map.value_label = "share of exact answers";
    for (const double depth : result.depths)
        map.columns.push_back(fmt::format("{:.0f}", 100 * depth));
    for (const CacheRecall& recall : result.caches) {
        std::vector<double> values;
        for (const Recall& depth : recall.by_depth) values.push_back(depth.accuracy);
        map.rows.emplace_back(recall.score.cache, values);
    }
    return draw_heat_map(map);
}

int eval_recall(const RecallOptions& options) {
    const EvalInput input = read_input(options);
    const std::string why =
        fmt::format(" (--ctx {} less {} for a question and its answer, in whole pages of {})",
                    options.context, kMostAsked, kPageTokens);
    const int count =
        choose_stretches(options.text, input.tokens.size(), options.documents,
                         {"document", document_length(options), why, kUsualDocuments});
    std::vector<PlantedDocument> documents;
    std::vector<EvalItem> items;
    for (std::size_t index = 0; index < static_cast<std::size_t>(count); ++index) {
        documents.push_back(make_document(options, input, index));
        items.push_back(make_item(documents.back()));
    }
    const Evaluation evaluation =
        evaluate(options, input, {{"documents", count}, {"depths", options.depths}}, items);
    RecallResult result;
    result.documents = evaluation.count_done(items.size());
    if (result.documents == 0)
        return show_nothing(options, evaluation, {{"documents", 0}}, "document");
    result.length = document_length(options);
    result.depths = make_depths(options.depths);
    const std::vector<CacheScore> scores = evaluation.scores(items.size());
    for (std::size_t cache = 0; cache < scores.size(); ++cache)
        result.caches.push_back(sum_up(evaluation, documents, cache, scores[cache]));
    warn_of_unquantized(options, scores);
    return show(options, {[&] { return to_json(options, evaluation, result); },
                          [&] { return to_text(result); }, [&] { return draw(result); }});
}

} // namespace

void add_eval_recall(CLI::App& parent, Action& action) {
    auto options = std::make_shared<RecallOptions>();
    CLI::App* command = parent.add_subcommand(
        "recall", "Facts planted in a text at several depths, asked for at its end");
    options->name = "eval recall";
    add_eval_options(*command, *options, "Tokens of a document and one question", kShortestContext);
    command->add_option("--depths", options->depths, "Depths, from the beginning to the end")
        ->type_name("N")
        ->check(whole_range(2, kMostFacts))
        ->capture_default_str();
    add_documents_option(*command, options->documents, kUsualDocuments);
    command->footer(kExamples);
    on_chosen(*command, action, options, options->threads, eval_recall);
}

} // namespace innerkv::cli
