// SPDX-License-Identifier: Apache-2.0
#include "models.h"

#include <pwd.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>

namespace innerkv::runner::test {
namespace {

std::string environment(const char* name) {
    const char* const value = std::getenv(name);
    return value ? value : "";
}

std::filesystem::path cache_folder() {
    if (const std::string folder = environment("INNERKV_CACHE_DIR"); !folder.empty()) {
        return folder;
    }
    if (const std::string base = environment("XDG_CACHE_HOME"); !base.empty()) {
        return std::filesystem::path(base) / "innerkv";
    }
    std::string home = environment("HOME");
    if (const passwd* const account = home.empty() ? ::getpwuid(::getuid()) : nullptr; account) {
        home = account->pw_dir;
    }
    return std::filesystem::path(home) / ".cache" / "innerkv";
}

} // namespace

std::string random_model(const std::string& name) {
    return std::string(INNERKV_TEST_MODELS) + "/" + name + ".gguf";
}

std::string real_model(const std::string& name) {
    const bool smollm2 = name == "smollm2";
    std::string given = environment(smollm2 ? "INNERKV_MODEL_SMOLLM2" : "INNERKV_MODEL_GEMMA3");
    if (!given.empty()) {
        return given;
    }
    const std::filesystem::path path =
        cache_folder() / "models" /
        (smollm2 ? "SmolLM2-135M-Instruct.Q4_1.gguf" : "gemma-3-270m.Q4_K_M.gguf");
    return std::filesystem::exists(path) ? path.string() : "";
}

std::string scratch_file(const std::string& name) {
    return std::string(INNERKV_TEST_SCRATCH) + "/" + std::to_string(::getpid()) + "-" + name;
}

namespace {

std::string run_outlier_tool(const std::string& model, const std::string& options) {
    std::string path = scratch_file("outliers.gguf");
    const std::string command =
        std::string(INNERKV_OUTLIER_TOOL) + " \"" + model + "\" \"" + path + "\" " + options;
    if (std::system(command.c_str()) != 0) {
        throw std::runtime_error("failed: " + command);
    }
    return path;
}

} // namespace

std::string make_outliers(const std::string& model, float factor, int pairs) {
    return run_outlier_tool(model, "--pairs " + std::to_string(pairs) + " --factor " +
                                       std::to_string(factor));
}

std::string make_f32(const std::string& model) {
    return run_outlier_tool(model, "--factor 1 --f32");
}

std::string sample_text(std::size_t bytes) {
    std::ifstream file(INNERKV_TEST_TEXT, std::ios::binary);
    std::string text(bytes, '\0');
    file.read(text.data(), static_cast<std::streamsize>(bytes));
    text.resize(static_cast<std::size_t>(file.gcount()));
    return text;
}

std::vector<Token> random_tokens(int count, int vocabulary_size, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<Token> tokens(static_cast<std::size_t>(count));
    for (Token& token : tokens) {
        token = static_cast<Token>(random() % static_cast<unsigned>(vocabulary_size));
    }
    return tokens;
}

} // namespace innerkv::runner::test
