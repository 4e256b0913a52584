// SPDX-License-Identifier: Apache-2.0
// Takes a model's static key transform from text.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "runner/calibration.h"
#include "runner/runner.h"

namespace innerkv::runner {

/// Collects the keys of windows of text, after RoPE, as an f16 cache holds them. Tokens of the sink, which
/// no cache quantizes, are left out.
class Calibrator {
public:
    /// Windows of up to `window` tokens; threads: 0: all cores. Throws InvalidArgument as Session does.
    Calibrator(std::shared_ptr<Model> model, int window, int threads);
    ~Calibrator();

    /// Processes one window. False: `progress` stopped it, and the calibrator is of no more use.
    bool add(std::span<const Token> tokens, const Session::Progress& progress = {});

    int threads() const;

    /// Of all windows so far; text_hash is the caller's to set. Throws InvalidArgument where there was
    /// no token behind the sink yet.
    Calibration result() const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace innerkv::runner
