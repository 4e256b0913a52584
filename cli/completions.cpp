// SPDX-License-Identifier: Apache-2.0
// `innerkv completions bash`: made from the commands and options that there are.
#include <memory>
#include <string>

#include <fmt/format.h>

#include "commands.h"
#include "errors.h"
#include "output.h"

namespace innerkv::cli {
namespace {

/// Words that may follow "innerkv run", "innerkv eval ppl", ...: one case per command.
void add_cases(const CLI::App& command, const std::string& path, std::string& cases) {
    std::string words;
    for (const CLI::App* child : command.get_subcommands({})) {
        words += child->get_name() + " ";
        add_cases(*child, path + " " + child->get_name(), cases);
    }
    for (const CLI::Option* option : command.get_options()) {
        for (const std::string& name : option->get_lnames()) words += "--" + name + " ";
        for (const std::string& name : option->get_snames()) words += "-" + name + " ";
    }
    if (!words.empty()) words.pop_back();
    cases += fmt::format("        \"{}\") words=\"{}\" ;;\n", path, words);
}

std::string bash_completions(const CLI::App& app) {
    std::string cases;
    add_cases(app, "innerkv", cases);
    return "# bash completions of innerkv: source <(innerkv completions bash)\n"
           "_innerkv() {\n"
           "    local current=${COMP_WORDS[COMP_CWORD]} path=innerkv word words=\n"
           "    for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
           "        [[ $word == -* ]] && break\n"
           "        path+=\" $word\"\n"
           "    done\n"
           "    case $path in\n" +
           cases +
           "    esac\n"
           "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")\n"
           "}\n"
           "complete -o default -F _innerkv innerkv\n";
}

} // namespace

void add_completions_command(CLI::App& app, Action& action) {
    auto shell = std::make_shared<std::string>();
    CLI::App* command = app.add_subcommand("completions", "Print completions for a shell");
    command->add_option("shell", *shell, "The shell")->required()->check(CLI::IsMember({"bash"}));
    command->footer("Examples:\n"
                    "  innerkv completions bash\n"
                    "  source <(innerkv completions bash)");
    command->callback([&app, &action, shell] {
        action = [&app] {
            write_output(bash_completions(app));
            return kSuccess;
        };
    });
}

} // namespace innerkv::cli
