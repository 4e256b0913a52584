// SPDX-License-Identifier: Apache-2.0
// What the library throws. Every message says what was asked, what is supported and what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace innerkv {

/// Base of everything the library throws on its own account.
class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// An argument is outside what is supported: shapes, unknown names, unknown sequences, values that
/// are not finite. Thrown before any state changes.
class InvalidArgument : public Error {
public:
    using Error::Error;
};

/// The pool has too few free pages. The cache is as it was before the call.
class OutOfPages : public Error {
public:
    using Error::Error;
};

} // namespace innerkv
