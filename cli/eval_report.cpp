// SPDX-License-Identifier: Apache-2.0
// How measurements of `innerkv eval` are shown.
#include <fmt/format.h>

#include "errors.h"
#include "eval.h"
#include "innerkv/attention.h"
#include "interrupt.h"
#include "log.h"
#include "text_file.h"

namespace innerkv::cli {
namespace {

constexpr std::size_t kStretches = 16; // of a document or a passage

Json score_json(const CacheScore& cache) {
    const std::optional<double> error = standard_error(cache.item_divergences);
    return {{"cache", cache.cache},
            {"ppl", cache.score.perplexity},
            {"kld_mean", cache.score.divergence_mean},
            {"kld_standard_error", error ? Json(*error) : Json()},
            {"kld_by_item", cache.item_divergences},
            {"kld_p99", cache.score.divergence_p99},
            {"kld_max", cache.score.divergence_max},
            {"top1", cache.score.same_top},
            {"bits_per_value", cache.bits_per_value},
            {"bits_per_value_total", cache.bits_per_value_total},
            {"tokens", cache.score.tokens}};
}

std::vector<Stretch> stretches_of(const CacheScore& score, const Positions& positions) {
    return by_position(score.rows, positions.length, positions.first, kStretches);
}

} // namespace

Json run_json(const EvalOptions& options, const Evaluation& evaluation, const Json& specific) {
    Json json = {{"model", options.model}, {"text", options.text}, {"ctx", options.context}};
    json.update(specific);
    json.update({{"codec", options.codec},
                 {"key_norm", options.key_norm.empty() ? Json() : Json(options.key_norm)},
                 {"calibration", options.calibration},
                 {"arithmetic", options.arithmetic},
                 {"isa", select_isa(options.isa)},
                 {"threads", evaluation.threads},
                 {"interrupted", interrupted()}});
    return json;
}

Json report_json(const EvalOptions& options, const Evaluation& evaluation, const Json& specific,
                 const std::vector<CacheScore>& scores,
                 const std::function<Json(std::size_t)>& extra) {
    Json json = run_json(options, evaluation, specific);
    json["against"] = {{"cache", scores.front().cache},
                       {"ppl", scores.front().score.perplexity},
                       {"tokens", scores.front().score.tokens}};
    json["against"].update(extra(0));
    json["results"] = Json::array();
    for (std::size_t index = 1; index < scores.size(); ++index) {
        json["results"].push_back(score_json(scores[index]));
        json["results"].back().update(extra(index));
    }
    return json;
}

Json by_position_json(const CacheScore& score, const Positions& positions) {
    Json json = Json::array();
    for (const Stretch& stretch : stretches_of(score, positions))
        json.push_back({{"position", stretch.position},
                        {"tokens", stretch.score.tokens},
                        {"ppl", stretch.score.perplexity},
                        {"kld_mean", stretch.score.divergence_mean},
                        {"top1", stretch.score.same_top}});
    return json;
}

std::string draw_by_position(const std::vector<CacheScore>& scores, const Positions& positions) {
    LineChart chart;
    chart.title = positions.title;
    chart.x_label = positions.x_label;
    chart.y_label = "mean KLD from " + scores.front().cache + ", nats";
    chart.log_y = true;
    for (std::size_t index = 1; index < scores.size(); ++index) {
        Series series;
        series.name = scores[index].cache;
        for (const Stretch& stretch : stretches_of(scores[index], positions))
            series.points.emplace_back(stretch.middle, stretch.score.divergence_mean);
        chart.series.push_back(series);
    }
    return draw_lines(chart);
}

std::string head_line(std::int64_t count, const std::string& noun, std::size_t length,
                      const std::string& what) {
    return fmt::format("{} {}{} of {} tokens, {}\n", count, noun, count == 1 ? "" : "s", length,
                       what);
}

std::string reference_text(const CacheScore& reference) {
    return fmt::format("{} tokens; {} has perplexity {:.4f}", reference.score.tokens,
                       reference.cache, reference.score.perplexity);
}

std::string score_table(const std::vector<CacheScore>& scores) {
    const double reference = scores.front().score.perplexity;
    Table table({"cache", "bits a value", "with windows", "ppl", "change", "mean KLD", "std error",
                 "p99 KLD", "top-1"});
    for (std::size_t index = 1; index < scores.size(); ++index) {
        const CacheScore& cache = scores[index];
        const std::optional<double> error = standard_error(cache.item_divergences);
        table.add({cache.cache, fmt::format("{:.2f}", cache.bits_per_value),
                   fmt::format("{:.2f}", cache.bits_per_value_total),
                   fmt::format("{:.4f}", cache.score.perplexity),
                   fmt::format("{:+.2f}%", 100.0 * (cache.score.perplexity / reference - 1.0)),
                   fmt::format("{:.5f}", cache.score.divergence_mean),
                   error ? fmt::format("{:.5f}", *error) : "-",
                   fmt::format("{:.4f}", cache.score.divergence_p99),
                   fmt::format("{:.2f}%", 100.0 * cache.score.same_top)});
    }
    return table.text();
}

void warn_of_unquantized(const EvalOptions& options, const std::vector<CacheScore>& scores) {
    std::string names;
    for (std::size_t index = 1; index < scores.size(); ++index)
        if (scores[index].never_quantized)
            names.append(names.empty() ? "" : ", ").append(scores[index].cache);
    if (!names.empty())
        log_warning(
            fmt::format("{} quantized nothing in windows of {} tokens, which its fp16 windows "
                        "hold; choose a larger --ctx",
                        names, options.context));
}

int show(const EvalOptions& options, const EvalReport& report) {
    if (options.json)
        write_json(report.json());
    else
        write_output(report.text());
    if (!options.plot.empty()) write_file(options.plot, report.plot());
    return interrupted() ? kInterrupted : kSuccess;
}

int show_nothing(const EvalOptions& options, const Evaluation& evaluation, const Json& specific,
                 const std::string& noun) {
    if (options.json) {
        Json json = run_json(options, evaluation, specific);
        json.update({{"against", Json()}, {"results", Json::array()}});
        write_json(json);
    }
    log_error(fmt::format("interrupted before the first {} was done", noun));
    return kInterrupted;
}

} // namespace innerkv::cli
