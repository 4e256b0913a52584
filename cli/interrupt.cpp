// SPDX-License-Identifier: Apache-2.0
#include "interrupt.h"

#include <csignal>

namespace innerkv::cli {
namespace {

volatile std::sig_atomic_t interrupt_flag = 0;

void on_interrupt(int) { interrupt_flag = 1; }

} // namespace

void ignore_closed_pipes() { std::signal(SIGPIPE, SIG_IGN); }

void catch_interrupts() {
    struct sigaction action {};
    action.sa_handler = on_interrupt;
    // After the first Ctrl-C the default action is back: a second one ends the process at once.
    action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
    sigaction(SIGINT, &action, nullptr);
}

bool interrupted() { return interrupt_flag != 0; }

} // namespace innerkv::cli
