// SPDX-License-Identifier: Apache-2.0
// `innerkv eval ppl`: perplexity, and how far predictions are from a reference's.
#include <memory>

#include <fmt/format.h>

#include "chart.h"
#include "eval.h"
#include "reading.h"

namespace innerkv::cli {
namespace {

constexpr int kShortestWindow = 64;
constexpr int kMostWindows = 1 << 24;

constexpr const char* kExamples =
    R"(Every token attends as in decoding. KLD is in nats, from the reference's prediction to the
cache's; top-1 tells how often both find the same token most likely. Contenders are presets, presets
with the paper's codecs (paper:PRESET) or other settings (PRESET+sink=4+recent=64) and caches of others
(sim:..., llama:...; docs/rivals.md).

Examples:
  innerkv eval ppl -m model.gguf --text tests/data/alice.txt --ctx 384 --chunks 1
  innerkv eval ppl -m model.gguf --text tests/data/wikitext-small.txt --ctx 384 --chunks 1 \
      --cache base,k4v4 --against f16 --json
  innerkv eval ppl -m model.gguf --text tests/data/wikitext-small.txt --ctx 384 --chunks 1 \
      --cache k4v4,paper:k4v4,base+sink=4,sim:q4_0+rot,llama:q4_0+rot)";

struct PplOptions : EvalOptions {
    int windows = 0; ///< 0: all that the text has
};

std::vector<EvalItem> make_windows(const EvalInput& input, std::size_t size, int windows) {
    std::vector<EvalItem> items;
    for (int window = 0; window < windows; ++window) {
        const std::vector<runner::Token> tokens =
            input.opened(static_cast<std::size_t>(window) * size, size);
        items.push_back(
            {static_cast<std::int64_t>(size) - 1, size - size / 2,
             [tokens, size](Contest& contest) { return contest.score(tokens, size / 2); }});
    }
    return items;
}

std::string to_text(const PplOptions& options, const std::vector<CacheScore>& scores,
                    std::int64_t windows) {
    return head_line(windows, "window", static_cast<std::size_t>(options.context),
                     "second half scored: " + reference_text(scores.front())) +
           score_table(scores);
}

std::string draw(const PplOptions& options, const std::vector<CacheScore>& scores) {
    BarChart chart;
    chart.title =
        fmt::format("Divergence from {}, windows of {} tokens", options.against, options.context);
    chart.value_label = "mean KLD, nats";
    for (std::size_t index = 1; index < scores.size(); ++index)
        chart.bars.emplace_back(fmt::format("{} ({:.2f} bits)", scores[index].cache,
                                            scores[index].bits_per_value_total),
                                scores[index].score.divergence_mean);
    return draw_bars(chart);
}

int eval_ppl(const PplOptions& options) {
    const EvalInput input = read_input(options);
    const auto size = static_cast<std::size_t>(options.context);
    const int windows = choose_stretches(options.text, input.tokens.size(), options.windows,
                                         {"window", size, {}, 0});
    const std::vector<EvalItem> items = make_windows(input, size, windows);
    const Evaluation evaluation = evaluate(options, input, {{"chunks", windows}}, items);
    const std::int64_t finished = evaluation.count_done(items.size());
    if (finished == 0) return show_nothing(options, evaluation, {{"chunks", 0}}, "window");
    const std::vector<CacheScore> scores = evaluation.scores(items.size());
    warn_of_unquantized(options, scores);
    return show(options, {[&] {
                              return report_json(options, evaluation, {{"chunks", finished}},
                                                 scores,
                                                 [](std::size_t) { return Json::object(); });
                          },
                          [&] { return to_text(options, scores, finished); },
                          [&] { return draw(options, scores); }});
}

} // namespace

void add_eval_ppl(CLI::App& parent, Action& action) {
    auto options = std::make_shared<PplOptions>();
    CLI::App* command = parent.add_subcommand(
        "ppl", "Perplexity on a text, and how far predictions are from those of a reference cache");
    options->name = "eval ppl";
    add_eval_options(*command, *options, "Tokens of a window; its second half is scored",
                     kShortestWindow);
    command->add_option("--chunks", options->windows, "Windows; all that the text has by default")
        ->type_name("N")
        ->check(whole_range(1, kMostWindows));
    command->footer(kExamples);
    on_chosen(*command, action, options, options->threads, eval_ppl);
}

} // namespace innerkv::cli
