// SPDX-License-Identifier: Apache-2.0
// Signals: Ctrl-C asks a command to stop and report; a closed pipe becomes a write error.
#pragma once

namespace innerkv::cli {

/// SIGPIPE is ignored.
void ignore_closed_pipes();

/// From now on the first SIGINT sets a flag, a second one ends the process. Called once there is
/// something that looks at the flag: until then one is enough.
void catch_interrupts();

/// Whether Ctrl-C was pressed since.
bool interrupted();

} // namespace innerkv::cli
