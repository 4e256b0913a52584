// SPDX-License-Identifier: Apache-2.0
// How the program ends.
#pragma once

#include <stdexcept>
#include <string>

namespace innerkv::cli {

inline constexpr int kSuccess = 0;
inline constexpr int kFailure = 1;
inline constexpr int kWrongUsage = 2;
inline constexpr int kInterrupted = 130; ///< Ctrl-C, as shells report it
inline constexpr int kClosedPipe = 141;  ///< the reader of stdout went away, as shells report it

/// Options that contradict each other, or that the model or the text they name is too small for.
class UsageError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// A file or a run that cannot be had; the message is the line the user sees.
class Failure : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// Nobody reads stdout any more.
class ClosedPipe : public std::runtime_error {
public:
    ClosedPipe() : std::runtime_error("standard output is closed") {}
};

} // namespace innerkv::cli
