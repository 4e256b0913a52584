// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <algorithm>
#include <string>

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "runner/runner.h"
#include "utf8.h"

namespace innerkv::cli {
namespace {

spdlog::logger& logger() {
    static const auto instance = [] {
        auto made = spdlog::stderr_logger_mt("innerkv");
        made->set_pattern("%n: %v");
        made->flush_on(spdlog::level::trace);
        return made;
    }();
    return *instance;
}

/// A message may quote a file, and hold line ends of its own.
std::string one_line(std::string_view message) {
    while (!message.empty() && (message.back() == '\n' || message.back() == ' '))
        message.remove_suffix(1);
    std::string line(message);
    std::ranges::replace(line, '\n', ' ');
    return printable(line);
}

} // namespace

void log_error(std::string_view message) { logger().error("{}", one_line(message)); }

void log_warning(std::string_view message) { logger().warn("warning: {}", one_line(message)); }

void log_models() {
    runner::set_log([](std::string_view message) {
        const std::string line = one_line(message);
        if (!line.empty()) logger().info("{}", line);
    });
}

} // namespace innerkv::cli
