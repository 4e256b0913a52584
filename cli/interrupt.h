// SPDX-License-Identifier: Apache-2.0
// Signals: Ctrl-C asks a command to stop and report; a closed pipe becomes a write error.
#pragma once

namespace innerkv::cli {

/// The first SIGINT sets a flag, a second one ends the process; SIGPIPE is ignored.
void install_signal_handlers();

/// Whether Ctrl-C was pressed.
bool interrupted();

} // namespace innerkv::cli
