// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <cctype>
#include <functional>
#include <mutex>
#include <string_view>
#include <utility>

#include "llama.h"
#include "runner/runner.h"

namespace innerkv::runner {
namespace {

thread_local CaughtLog* caught = nullptr;

struct Sink {
    std::mutex mutex;
    std::function<void(std::string_view)> write;
};

Sink& current_sink() {
    static Sink instance;
    return instance;
}

void on_log(ggml_log_level level, const char* text, void*) {
    if (level == GGML_LOG_LEVEL_ERROR && caught) {
        caught->add(text);
    }
    Sink& out = current_sink();
    const std::lock_guard lock(out.mutex);
    if (out.write) {
        out.write(text);
    }
}

} // namespace

void install_log() {
    static std::once_flag once;
    std::call_once(once, [] { llama_log_set(on_log, nullptr); });
}

void set_log(std::function<void(std::string_view)> sink) {
    install_log();
    Sink& out = current_sink();
    const std::lock_guard lock(out.mutex);
    out.write = std::move(sink);
}

CaughtLog::CaughtLog() : outer_(std::exchange(caught, this)) { install_log(); }

CaughtLog::~CaughtLog() { caught = outer_; }

void CaughtLog::add(const char* text) {
    if (!first_error_.empty()) {
        return;
    }
    std::string_view line(text);
    if (const std::size_t colon = line.find(": ");
        colon != std::string_view::npos && line.find(' ') > colon) {
        line.remove_prefix(colon + 2); // the function's name
    }
    for (const char c : line) {
        first_error_ += std::isprint(static_cast<unsigned char>(c)) ? c : ' ';
    }
    first_error_.erase(first_error_.find_last_not_of(' ') + 1);
}

} // namespace innerkv::runner
