// SPDX-License-Identifier: Apache-2.0
#include "standing.h"

#include <fmt/format.h>

#include "errors.h"

namespace innerkv::cli {
namespace {

const Json& field(const Json& json, const char* name) {
    if (!json.is_object() || !json.contains(name))
        throw Failure(fmt::format("{} is missing", name));
    return json[name];
}

double number(const Json& json, const char* name) {
    if (!json.is_number()) throw Failure(fmt::format("{} holds what is not a number", name));
    return json.get<double>();
}

std::int64_t count_of(const Json& json, const char* name, std::int64_t least) {
    const Json& value = field(json, name);
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > std::uint64_t{1} << 53 ||
        value.get<std::int64_t>() < least)
        throw Failure(
            fmt::format("{} is {}, not a count of {} or more", name, value.dump(), least));
    return value.get<std::int64_t>();
}

const Json& column(const Json& json, const char* name, std::size_t rows) {
    const Json& values = field(json, name);
    if (!values.is_array() || values.size() != rows)
        throw Failure(fmt::format("{} is not a list of {} values", name, rows));
    return values;
}

Json to_json(const Standing& standing) {
    Json log_likelihood = Json::array();
    Json divergence = Json::array();
    std::string same_top;
    std::string correct;
    for (const RowScore& row : standing.rows) {
        log_likelihood.push_back(row.log_likelihood);
        divergence.push_back(row.divergence);
        same_top.push_back(row.same_top ? '1' : '0');
        correct.push_back(row.correct ? '1' : '0');
    }
    const runner::CacheReport& report = standing.report;
    return {{"tokens", report.tokens},
            {"bytes", report.bytes},
            {"f16_bytes", report.f16_bytes},
            {"quantized_pages", report.quantized_pages},
            {"generated", standing.generated},
            {"common", standing.common},
            {"same_top", same_top},
            {"correct", correct},
            {"log_likelihood", log_likelihood},
            {"kld", divergence}};
}

std::string bits(const Json& json, const char* name) {
    const Json& value = field(json, name);
    if (!value.is_string() ||
        value.get_ref<const std::string&>().find_first_not_of("01") != std::string::npos)
        throw Failure(fmt::format("{} is no text of 0 and 1", name));
    return value.get<std::string>();
}

Standing standing_from_json(const Json& json) {
    Standing standing;
    const std::string same_top = bits(json, "same_top");
    const std::string correct = bits(json, "correct");
    if (correct.size() != same_top.size())
        throw Failure(
            fmt::format("correct has {} rows, same_top {}", correct.size(), same_top.size()));
    const Json& log_likelihood = column(json, "log_likelihood", same_top.size());
    const Json& divergence = column(json, "kld", same_top.size());
    for (std::size_t row = 0; row < same_top.size(); ++row) {
        standing.rows.push_back({number(log_likelihood[row], "log_likelihood"),
                                 number(divergence[row], "kld"), same_top[row] == '1',
                                 correct[row] == '1'});
        if (!is_possible(standing.rows.back()))
            throw Failure(fmt::format("no model gives a log_likelihood of {} or a kld of {}",
                                      standing.rows.back().log_likelihood,
                                      standing.rows.back().divergence));
    }
    standing.generated = count_of(json, "generated", 0);
    standing.common = count_of(json, "common", 0);
    standing.report.tokens = count_of(json, "tokens", 1);
    standing.report.bytes = static_cast<std::size_t>(count_of(json, "bytes", 1));
    standing.report.f16_bytes = static_cast<std::size_t>(count_of(json, "f16_bytes", 1));
    standing.report.quantized_pages = count_of(json, "quantized_pages", 0);
    return standing;
}

} // namespace

Json to_json(const std::vector<Standing>& standings) {
    Json json = Json::array();
    for (const Standing& standing : standings) json.push_back(to_json(standing));
    return json;
}

std::vector<Standing> standings_from_json(const Json& json) {
    if (!json.is_array()) throw Failure("caches is not a list");
    std::vector<Standing> standings;
    for (const Json& standing : json) standings.push_back(standing_from_json(standing));
    return standings;
}

} // namespace innerkv::cli
