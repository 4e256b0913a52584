// SPDX-License-Identifier: Apache-2.0
#include "run_report.h"

#include <algorithm>

#include <fmt/format.h>

namespace innerkv::cli {
namespace {

/// Of either text around the place where they part.
constexpr std::size_t kShownCharacters = 160;

double times_smaller(const runner::CacheReport& cache) {
    return cache.bytes ? static_cast<double>(cache.f16_bytes) / static_cast<double>(cache.bytes)
                       : 0.0;
}

/// "4.02 times smaller"; a few tokens take whole pages and may need more than fp16.
std::string describe_ratio(const runner::CacheReport& cache) {
    const double ratio = times_smaller(cache);
    if (ratio >= 1 || ratio <= 0) return fmt::format("{:.2f} times smaller", ratio);
    return fmt::format("{:.2f} times larger, for windows are whole pages of fp16", 1 / ratio);
}

bool starts_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }

/// On one line: runs of white space are one space.
std::string flatten(std::string_view text) {
    std::string line;
    for (const char byte : text) {
        const bool space = byte == ' ' || byte == '\n' || byte == '\t' || byte == '\r';
        if (!space)
            line += byte;
        else if (!line.empty() && line.back() != ' ')
            line += ' ';
    }
    return line;
}

/// The last characters of a text.
std::string tail(const std::string& text) {
    const std::string line = flatten(text);
    std::size_t start = line.size() > kShownCharacters ? line.size() - kShownCharacters : 0;
    while (start > 0 && start < line.size() && !starts_character(line[start])) ++start;
    return fmt::format("{}{}", start ? "..." : "", line.substr(start));
}

/// The first characters of a generated text from `from` on.
std::string head(const Generation& generation, std::size_t from) {
    const std::string& text = generation.text;
    const std::string line = flatten(std::string_view(text).substr(std::min(from, text.size())));
    std::size_t end = std::min(line.size(), kShownCharacters);
    while (end < line.size() && !starts_character(line[end])) ++end;
    if (line.empty()) return generation.finish == Finish::interrupted ? "(interrupted)" : "(ends)";
    return fmt::format("{}{}", line.substr(0, end), end < line.size() ? "..." : "");
}

std::vector<std::string> table_row(const std::string& cache, const Generation& generation) {
    return {cache, format_bytes(generation.cache.bytes),
            fmt::format("{:.2f}x", times_smaller(generation.cache)),
            fmt::format("{:.1f}", generation.prompt_tokens_per_s()),
            generation.decoded_tokens > 0 ? fmt::format("{:.1f}", generation.decode_tokens_per_s())
                                          : "-"};
}

std::string comparison_text(const RunReport& report) {
    const Comparison& other = *report.comparison;
    Table table({"cache", "bytes", "smaller", "prompt tokens/s", "decode tokens/s", "same top-1",
                 "mean KLD"});
    std::vector<std::string> first = table_row(report.cache, report.generation);
    first.push_back(fmt::format("{:.1f}%", 100.0 * other.score.same_top));
    first.push_back(fmt::format("{:.5f}", other.score.divergence_mean));
    table.add(first);
    std::vector<std::string> second = table_row(report.compared_cache, other.generation);
    second.insert(second.end(), {"", ""});
    table.add(second);
    std::string text = table.text();
    text +=
        fmt::format("\nTop-1 and KLD (nats): {}'s predictions against {}'s for {} tokens of the "
                    "text that {} generated, both\nfed with that text.\n",
                    report.cache, report.compared_cache, other.score.tokens, report.cache);
    if (!other.parted) {
        text += fmt::format("{} generates the same text.\n", report.compared_cache);
        return text;
    }
    if (other.common_tokens == 0) {
        text += "The texts part at the first token:\n";
    } else {
        text += fmt::format("The texts part after {} token{}:\n", other.common_tokens,
                            other.common_tokens == 1 ? "" : "s");
        text += fmt::format("  both    {}\n", tail(other.common_text));
    }
    const std::size_t at = other.common_text.size();
    text += fmt::format("  {:<7} {}\n", report.cache, head(report.generation, at));
    text += fmt::format("  {:<7} {}\n", report.compared_cache, head(other.generation, at));
    return text;
}

Json comparison_json(const RunReport& report) {
    const Comparison& other = *report.comparison;
    Json json = {{"cache", report.compared_cache},
                 {"text", other.generation.text},
                 {"finish", finish_name(other.generation.finish)},
                 {"generated_tokens", other.generation.tokens.size()},
                 {"prompt_tokens_per_s", other.generation.prompt_tokens_per_s()},
                 {"decode_tokens_per_s", other.generation.decode_tokens_per_s()},
                 {"cache_bytes", other.generation.cache.bytes},
                 {"texts_part", other.parted},
                 {"common_tokens", other.common_tokens},
                 {"common_text", other.common_text},
                 {"teacher_forced_tokens", other.score.tokens},
                 {"top1", other.score.same_top},
                 {"kld_mean", other.score.divergence_mean},
                 {"kld_p99", other.score.divergence_p99}};
    return json;
}

} // namespace

Json to_json(const RunReport& report) {
    const Generation& generation = report.generation;
    Json json = {{"model", report.model},
                 {"cache", report.cache},
                 {"context", report.context},
                 {"threads", report.threads},
                 {"text", generation.text},
                 {"finish", finish_name(generation.finish)},
                 {"prompt_tokens", generation.prompt_tokens},
                 {"prompt_length", generation.prompt_length},
                 {"generated_tokens", generation.tokens.size()},
                 {"prompt_tokens_per_s", generation.prompt_tokens_per_s()},
                 {"decode_tokens_per_s", generation.decode_tokens_per_s()},
                 {"cache_tokens", generation.cache.tokens},
                 {"cache_bytes", generation.cache.bytes},
                 {"cache_bytes_f16", generation.cache.f16_bytes},
                 {"cache_ratio", times_smaller(generation.cache)}};
    if (!report.compared_cache.empty())
        json["compare"] = report.comparison ? comparison_json(report) : Json();
    return json;
}

std::string to_text(const RunReport& report) {
    const Generation& generation = report.generation;
    const std::string of_whole = generation.prompt_tokens < generation.prompt_length
                                     ? fmt::format(" of {}", generation.prompt_length)
                                     : "";
    std::string text = fmt::format(
        "\ncache   {}: {} for {} tokens, f16 takes {}: {}\n"
        "prompt  {}{} tokens, {:.1f} tokens/s\n"
        "decode  {} tokens, {:.1f} tokens/s ({})\n",
        report.cache, format_bytes(generation.cache.bytes), generation.cache.tokens,
        format_bytes(generation.cache.f16_bytes), describe_ratio(generation.cache),
        generation.prompt_tokens, of_whole, generation.prompt_tokens_per_s(),
        generation.tokens.size(), generation.decode_tokens_per_s(), finish_name(generation.finish));
    if (report.comparison) text.append("\n").append(comparison_text(report));
    if (!report.compared_cache.empty() && !report.comparison) text += "comparison interrupted\n";
    return text;
}

} // namespace innerkv::cli
