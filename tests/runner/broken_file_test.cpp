// SPDX-License-Identifier: Apache-2.0
// Truncated and damaged files throw or load; they never crash. Each case runs in a process of its own.
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>

#include "models.h"

namespace innerkv::runner::test {
namespace {

/// Exit codes that no crash, sanitizer or runtime uses.
enum Outcome { kWorks = 40, kRefused = 41, kOtherException = 42 };

/// Loads the file and, where that works, processes a few tokens.
int try_model(const std::string& path) {
    try {
        const std::shared_ptr<Model> model = Model::load(path);
        SessionOptions options = make_options("base", std::min(64, model->info().context_length));
        options.threads = 1;
        Session session(model, options);
        const std::vector<Token> tokens(static_cast<std::size_t>(std::min(40, options.context)), 0);
        session.prompt(tokens);
        for (const Token token : model->tokenize("one line\nand an\xc3\xb6ther", true, true)) {
            model->piece(token);
        }
        return kWorks;
    } catch (const Error&) {
        return kRefused;
    } catch (...) {
        return kOtherException;
    }
}

/// The child's exit status, or minus the signal that ended it.
int try_in_child(const std::string& path) {
    const pid_t child = ::fork();
    if (child == 0) {
        std::freopen("/dev/null", "w", stderr);
        ::_exit(try_model(path));
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

std::vector<char> read_all(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write_all(const std::string& path, const char* data, std::size_t size) {
    std::ofstream(path, std::ios::binary).write(data, static_cast<std::streamsize>(size));
}

/// By kind of vocabulary: libllama reads each in its own way.
class BrokenFile : public testing::TestWithParam<const char*> {
protected:
    ~BrokenFile() override { std::remove(path_.c_str()); }

    std::vector<char> contents_ = read_all(random_model(GetParam()));
    std::string path_ = scratch_file("broken.gguf");
};

TEST_P(BrokenFile, WholeFileWorks) { EXPECT_EQ(try_in_child(random_model(GetParam())), kWorks); }

TEST_P(BrokenFile, EveryTruncationIsRefused) {
    std::vector<std::size_t> sizes;
    for (std::size_t size = 0; size < 200; size += 7) {
        sizes.push_back(size);
    }
    for (std::size_t i = 1; i < 60; ++i) {
        sizes.push_back(contents_.size() * i / 60 + i);
    }
    sizes.push_back(contents_.size() - 64);
    for (const std::size_t size : sizes) {
        write_all(path_, contents_.data(), size);
        EXPECT_EQ(try_in_child(path_), kRefused) << "first " << size << " bytes";
    }
}

TEST_P(BrokenFile, KeyThatBeginsWithNul) {
    const std::string key = "general.name";
    const auto found = std::search(contents_.begin(), contents_.end(), key.begin(), key.end());
    ASSERT_NE(found, contents_.end());
    *found = '\0';
    write_all(path_, contents_.data(), contents_.size());
    EXPECT_EQ(try_in_child(path_), kRefused);
}

TEST_P(BrokenFile, DamagedMetadataNeverCrash) {
    // the metadata end where the first tensor's data begin; the tokenizer is most of it
    const std::string last_name = "ffn_norm.weight";
    const auto last =
        std::find_end(contents_.begin(), contents_.end(), last_name.begin(), last_name.end());
    const auto metadata_bytes = static_cast<unsigned>(last - contents_.begin()) + 64;
    std::mt19937 random(11);
    for (int round = 0; round < 150; ++round) {
        std::vector<char> damaged = contents_;
        for (unsigned flips = 1 + random() % 3; flips > 0; --flips) {
            damaged[random() % metadata_bytes] ^= static_cast<char>(1u << random() % 8);
        }
        write_all(path_, damaged.data(), damaged.size());
        const int outcome = try_in_child(path_);
        EXPECT_TRUE(outcome == kWorks || outcome == kRefused)
            << "round " << round << ": " << outcome;
    }
}

TEST_P(BrokenFile, DamagedKeysAndValuesNeverCrash) {
    // what decides about shapes, in the first part of the file: whole bytes, extremes among them
    constexpr unsigned head_bytes = 1200;
    constexpr char extremes[] = {'\0', '\x01', '\x7f', '\x80', '\xff'};
    std::mt19937 random(12);
    for (int round = 0; round < 150; ++round) {
        std::vector<char> damaged = contents_;
        damaged[8 + random() % head_bytes] = extremes[random() % std::size(extremes)];
        write_all(path_, damaged.data(), damaged.size());
        const int outcome = try_in_child(path_);
        EXPECT_TRUE(outcome == kWorks || outcome == kRefused)
            << "round " << round << ": " << outcome;
    }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, BrokenFile, testing::Values("llama-q4_1", "llama-spm"),
                         [](const auto& test) { return test.index == 0 ? "bpe" : "spm"; });

} // namespace
} // namespace innerkv::runner::test
