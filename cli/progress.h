// SPDX-License-Identifier: Apache-2.0
// A progress bar on stderr, drawn only where stderr is a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace innerkv::cli {

/// The bar's line for a terminal of `columns`: label, bar, done of total, rate, remaining time.
std::string progress_line(const std::string& label, const std::string& unit, std::int64_t done,
                          std::int64_t total, double seconds, int columns);

class Progress {
public:
    Progress(std::string label, std::string unit, std::int64_t total);
    /// Wipes the line.
    ~Progress();
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    void update(std::int64_t done);

private:
    using Clock = std::chrono::steady_clock;

    std::string label_;
    std::string unit_;
    std::int64_t total_;
    bool terminal_;
    bool drawn_ = false;
    Clock::time_point start_;
    Clock::time_point last_draw_;
};

} // namespace innerkv::cli
