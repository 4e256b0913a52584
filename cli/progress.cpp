// SPDX-License-Identifier: Apache-2.0
#include "progress.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "output.h"

namespace innerkv::cli {
namespace {

constexpr int kWidestBar = 32;

bool draws_on_stderr() {
    const char* terminal = std::getenv("TERM");
    return isatty(STDERR_FILENO) && !(terminal && std::string_view(terminal) == "dumb");
}

int terminal_columns() {
    winsize size{};
    const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    return known ? size.ws_col : 80;
}

} // namespace

std::string progress_line(const std::string& label, const std::string& unit, std::int64_t done,
                          std::int64_t total, double seconds, int columns) {
    std::string tail = fmt::format(" {}/{} {}", done, total, unit);
    if (done > 0 && seconds > 0) {
        const double rate = static_cast<double>(done) / seconds;
        tail += fmt::format("  {:.{}f}/s  {} left", rate, rate < 10 ? 2 : 0,
                            format_duration(static_cast<double>(total - done) / rate));
    }
    const int room = columns - static_cast<int>(label.size() + tail.size()) - 4;
    std::string line = label;
    if (room >= 4) {
        const int width = std::min(room, kWidestBar);
        const auto filled = static_cast<std::size_t>(total > 0 ? width * done / total : width);
        line += " [" + std::string(filled, '#') +
                std::string(static_cast<std::size_t>(width) - filled, '.') + "]";
    }
    line += tail;
    return line.substr(0, static_cast<std::size_t>(std::max(columns - 1, 0)));
}

Progress::Progress(std::string label, std::string unit, std::int64_t total)
    : label_(std::move(label)), unit_(std::move(unit)), total_(total), terminal_(draws_on_stderr()),
      start_(Clock::now()), last_draw_(start_) {
    update(0);
}

Progress::~Progress() {
    if (drawn_) std::fputs("\r\x1b[K", stderr);
}

void Progress::update(std::int64_t done) {
    constexpr auto kBetweenDraws = std::chrono::milliseconds(100);
    if (!terminal_) return;
    const auto now = Clock::now();
    if (drawn_ && now - last_draw_ < kBetweenDraws && done < total_) return;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    const std::string line =
        progress_line(label_, unit_, done, total_, seconds, terminal_columns());
    std::fputs(("\r" + line + "\x1b[K").c_str(), stderr);
    std::fflush(stderr);
    drawn_ = true;
    last_draw_ = now;
}

} // namespace innerkv::cli
