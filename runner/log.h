// SPDX-License-Identifier: Apache-2.0
// What ggml and llama.cpp log: silent unless a sink is set, and caught where it explains a failure.
#pragma once

#include <string>

namespace innerkv::runner {

/// Routes the logs of ggml and llama.cpp to set_log()'s sink. Called before the first use of either.
void install_log();

/// Keeps the first error that ggml or llama.cpp logs on this thread while the object lives.
class CaughtLog {
public:
    CaughtLog();
    ~CaughtLog();
    CaughtLog(const CaughtLog&) = delete;
    CaughtLog& operator=(const CaughtLog&) = delete;

    /// Without the name of the function it came from and the line's end; empty: nothing was logged.
    const std::string& first_error() const { return first_error_; }
    void add(const char* text);

private:
    CaughtLog* outer_;
    std::string first_error_;
};

} // namespace innerkv::runner
