// SPDX-License-Identifier: Apache-2.0
// The `innerkv` program: reads the command line, runs one command, turns errors into exit codes.
#include <exception>
#include <new>
#include <string>

#include "commands.h"
#include "errors.h"
#include "interrupt.h"
#include "log.h"
#include "output.h"

namespace {

using namespace innerkv::cli;

void describe(CLI::App& app) {
    app.name("innerkv");
    app.set_version_flag("--version", "innerkv " INNERKV_VERSION);
    app.require_subcommand(1);
    app.footer("innerkv COMMAND --help shows a command's options and examples.\n"
               "Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.");
}

/// The command line of the command that was being parsed, for "see ... --help".
std::string command_path(const CLI::App& app) {
    std::string path = app.get_name();
    for (const CLI::App* command : app.get_subcommands()) path += " " + command_path(*command);
    return path;
}

bool is_option(const std::string& word) { return word.starts_with('-'); }

/// What cannot be in the words of the parsing library, which knows neither command nor user.
std::string told(const CLI::App& command, const CLI::ParseError& error) {
    std::string text = error.what();
    const std::string option = text.substr(0, text.find(':'));
    const std::vector<std::string> rest = command.remaining();
    for (const std::string& word : rest)
        if (is_option(word)) return "there is no option " + word;
    if (!rest.empty()) return "'" + rest.front() + "' is one argument too many";
    if (!dynamic_cast<const CLI::ArgumentMismatch*>(&error)) return text;
    const std::string_view required = " required "; // "--plot: 1 required FILE.svg missing"
    const std::size_t type = text.find(required) + required.size();
    const std::size_t end = text.rfind(" missing");
    if (end == std::string::npos) return option + " is given more than once";
    return option + " needs a value: " + text.substr(type, end - type);
}

/// Where help is.
UsageError usage_error(const CLI::App& app, const std::string& message) {
    return UsageError(message + " (see " + command_path(app) + " --help)");
}

/// What is wrong with the words of the command line.
std::string usage_message(const CLI::App& app, const CLI::ParseError& error) {
    const CLI::App* command = &app;
    while (!command->get_subcommands().empty()) command = command->get_subcommands().front();
    std::string message = told(*command, error);
    // An unknown command is left over while another is asked for.
    const std::vector<std::string> rest = command->remaining();
    const bool commands_expected = !command->get_subcommands({}).empty();
    if (commands_expected && !rest.empty() && !is_option(rest.front()))
        message = "there is no command '" + rest.front() + "'";
    else if (commands_expected && rest.empty() && command->get_subcommands().empty())
        message = "a command is needed";
    return message;
}

int run(int argc, char** argv) {
    CLI::App app("Large language models on a quantized key-value cache");
    Action action;
    describe(app);
    add_run_command(app, action);
    add_eval_command(app, action);
    add_calibrate_command(app, action);
    add_bench_command(app, action);
    add_plan_command(app, action);
    add_inspect_command(app, action);
    add_completions_command(app, action);
    try {
        app.parse(argc, argv);
        return action();
    } catch (const CLI::CallForHelp&) {
        write_output(app.help());
    } catch (const CLI::CallForVersion& version) {
        write_output(std::string(version.what()) + "\n");
    } catch (const CLI::ParseError& error) {
        throw usage_error(app, usage_message(app, error));
    } catch (const UsageError& error) {
        throw usage_error(app, error.what());
    }
    return kSuccess;
}

} // namespace

int main(int argc, char** argv) {
    ignore_closed_pipes();
    try {
        return run(argc, argv);
    } catch (const UsageError& error) {
        log_error(error.what());
        return kWrongUsage;
    } catch (const ClosedPipe&) {
        return kClosedPipe;
    } catch (const std::bad_alloc&) {
        log_error("out of memory; a smaller --context or a smaller cache needs less");
    } catch (const std::exception& error) {
        log_error(error.what());
    }
    return kFailure;
}
