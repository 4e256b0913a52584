// SPDX-License-Identifier: Apache-2.0
// Options that several commands share.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

#include "commands.h"
#include "runner/calibration.h"
#include "runner/runner.h"

namespace innerkv::cli {

/// "A,B,C" into its parts; throws CLI::ValidationError where one is empty or named twice.
std::vector<std::string> split_list(const std::string& list);

/// Names of all presets, separated by commas.
std::string preset_names();

/// One preset; unknown names are refused with the list of those there are.
CLI::Option* add_preset_option(CLI::App& command, const std::string& flags, std::string& preset,
                               const std::string& description);
/// One preset or rival, as runner::make_options has them; likewise refused.
CLI::Option* add_contender_option(CLI::App& command, const std::string& flags,
                                  std::string& contender, const std::string& description);
/// Such names separated by commas.
CLI::Option* add_contenders_option(CLI::App& command, std::string& contenders,
                                   const std::string& description);
/// Presets separated by commas.
CLI::Option* add_presets_option(CLI::App& command, std::string& presets,
                                const std::string& description);
CLI::Option* add_model_option(CLI::App& command, std::string& path);
CLI::Option* add_threads_option(CLI::App& command, int& threads, const std::string& description);
/// As many threads as there are cores at most, with a warning: ggml's threads wait for each other at every
/// node of a graph, and one that has no core holds up all.
void limit_threads(int& threads);
/// Lets the command's action be `run` with the options, of which `threads` is a part, limited.
template <typename Options>
void on_chosen(CLI::App& command, Action& action, const std::shared_ptr<Options>& options,
               int& threads, int (*run)(const Options&)) {
    command.callback([&action, options, &threads, run] {
        action = [options, &threads, run] {
            limit_threads(threads);
            return run(*options);
        };
    });
}
/// "none", "prefill", "balanced", or empty for the preset's own.
CLI::Option* add_key_norm_option(CLI::App& command, std::string& key_norm);
/// Unknown names are refused with the list of those there are.
CLI::Option* add_isa_option(CLI::App& command, std::string& isa, const std::string& description);
CLI::Option* add_json_option(CLI::App& command, bool& json);

/// Values of --codec.
inline constexpr const char* kOwnCodec = "innerkv";
inline constexpr const char* kPaperCodec = "paper";
CLI::Option* add_codec_option(CLI::App& command, std::string& codec);

/// The contender, a preset with its key norm replaced, unless `key_norm` is empty or nothing is quantized,
/// and with the paper's codecs where `codec` asks for them. A rival is what its name says. Throws UsageError
/// where the codec would undo settings of the contender.
runner::SessionOptions session_options(const std::string& contender, int context,
                                       const std::string& key_norm, const std::string& codec);

/// Throws UsageError where a context, the value of `option`, is beyond what the model was made for.
void check_context(const char* option, int context, const runner::ModelInfo& info);

CLI::Option* add_calibration_option(CLI::App& command, std::string& path);
/// Null for an empty path. Throws UsageError where one of the `caches`, separated by commas, or the codec has no use
/// for a calibration, or for the bits by layer that this one brings.
std::shared_ptr<const runner::Calibration>
read_calibration(const std::string& path, const std::string& caches, const std::string& codec);

/// Refuses an empty name: a shell's variable that is not set.
CLI::Validator file_name();
/// Refuses what `check` throws InvalidArgument or CLI::ValidationError at, in its words.
CLI::Validator accepted_by(std::function<void(const std::string&)> check);
/// A whole number in decimal as it would be printed; null: something else. CLI11 takes a leading zero for octal, and lets
/// what is too large for 64 bits through.
std::optional<std::int64_t> whole_number(const std::string& text);
/// Whole numbers from `low` to `high`; --help shows both.
CLI::Validator whole_range(std::int64_t low, std::int64_t high);
/// Refuses everything but finite numbers from `low` to `high`; --help shows both.
CLI::Validator finite_range(double low, double high);

} // namespace innerkv::cli
