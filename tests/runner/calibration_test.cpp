// SPDX-License-Identifier: Apache-2.0
// Calibrations: taken from a model's keys, written, read back, refused.
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <random>

#include "innerkv/codec.h"
#include "models.h"
#include "runner/calibration.h"
#include "runner/calibrator.h"

namespace innerkv::runner::test {
namespace {

constexpr int kWindow = 400;
constexpr int kSink = 32;

/// Keys of one token: [layers, kv_heads, head_dim].
std::vector<float> last_keys(const Session& session, const ModelInfo& info) {
    std::vector<float> keys;
    for (int layer = 0; layer < info.layers; ++layer) {
        const SequenceView view = session.view(layer);
        const PageRun& run = view.recent.tokens > 0 ? view.recent : view.sink;
        const auto row = static_cast<std::size_t>(run.tokens - 1);
        for (int head = 0; head < info.kv_heads; ++head) {
            const std::byte* const page = run.pages[row / kPageTokens] + head * run.head_stride;
            const auto* const channels =
                reinterpret_cast<const std::uint16_t*>(page) +
                row % kPageTokens * static_cast<std::size_t>(info.head_dim);
            std::transform(channels, channels + info.head_dim, std::back_inserter(keys),
                           [](std::uint16_t bits) { return float_from_f16(bits); });
        }
    }
    return keys;
}

/// Of all tokens behind the sink, decoded one by one: rows of keys.
std::vector<std::vector<float>> all_keys(const std::shared_ptr<Model>& model,
                                         std::span<const Token> tokens) {
    SessionOptions options = make_options("f16", kWindow);
    options.threads = 1;
    Session session(model, options);
    std::vector<std::vector<float>> rows;
    for (const Token token : tokens) {
        session.decode(token);
        if (session.length() > kSink) {
            rows.push_back(last_keys(session, model->info()));
        }
    }
    return rows;
}

Calibration calibrate(const std::shared_ptr<Model>& model, int windows) {
    Calibrator calibrator(model, kWindow, 1);
    for (int i = 0; i < windows; ++i) {
        calibrator.add(
            random_tokens(kWindow, model->info().vocabulary_size, static_cast<unsigned>(20 + i)));
    }
    return calibrator.result();
}

class CalibratedModel : public testing::TestWithParam<const char*> {};

TEST_P(CalibratedModel, IsWhatItsKeysSay) {
    const std::string path = make_outliers(random_model(GetParam()), 32.0f, 2);
    const std::shared_ptr<Model> model = Model::load(path);
    constexpr int windows = 2;
    int outliers = 0;
    std::vector<std::vector<float>> rows;
    for (int i = 0; i < windows; ++i) {
        const auto more = all_keys(model, random_tokens(kWindow, model->info().vocabulary_size,
                                                        static_cast<unsigned>(20 + i)));
        rows.insert(rows.end(), more.begin(), more.end());
    }
    const Calibration calibration = calibrate(model, windows);
    ASSERT_EQ(calibration.tokens, windows * (kWindow - kSink));
    ASSERT_EQ(calibration.centre.size(), rows.front().size());
    ASSERT_EQ(calibration.norm.size(), rows.front().size());
    std::vector<double> magnitudes;
    for (std::size_t c = 0; c < rows.front().size(); ++c) {
        double mean = 0.0;
        for (const auto& row : rows) {
            mean += double{row[c]} / static_cast<double>(rows.size());
        }
        double largest = 0.0;
        for (const auto& row : rows) {
            largest = std::max(largest, std::abs(row[c] - mean));
        }
        // products of other batch sizes round differently
        ASSERT_NEAR(calibration.centre[c], mean, 0.01 * largest) << c;
        magnitudes.push_back(largest);
    }
    const auto dim = static_cast<std::size_t>(model->info().head_dim);
    for (std::size_t c = 0; c < magnitudes.size(); ++c) {
        const auto head = magnitudes.begin() + static_cast<std::ptrdiff_t>(c / dim * dim);
        std::vector<double> sorted(head, head + static_cast<std::ptrdiff_t>(dim));
        std::sort(sorted.begin(), sorted.end());
        const double norm = std::max(1.0, magnitudes[c] / (4.0 * sorted[(dim - 1) / 2]));
        ASSERT_NEAR(calibration.norm[c], norm, 0.01 * norm) << c;
        outliers += norm > 2.0 ? 1 : 0;
    }
    std::remove(path.c_str());
    // what the tool made, in every head
    EXPECT_EQ(outliers, model->info().layers * model->info().kv_heads * 4);
}

INSTANTIATE_TEST_SUITE_P(Models, CalibratedModel,
                         testing::Values("llama", "qwen2", "gemma3", "qwen3"),
                         [](const auto& test) { return std::string(test.param); });

class CalibrationFile : public testing::Test {
protected:
    CalibrationFile() { write_calibration(calibration_, path_); }
    ~CalibrationFile() override { std::remove(path_.c_str()); }

    static std::vector<char> contents_of(const std::string& path) {
        std::ifstream file(path, std::ios::binary);
        return {std::istreambuf_iterator<char>(file), {}};
    }
    void write(const std::vector<char>& contents) const {
        std::ofstream(path_, std::ios::binary)
            .write(contents.data(), static_cast<std::streamsize>(contents.size()));
    }
    void expect_equal(const Calibration& read) const {
        EXPECT_EQ(read.architecture, calibration_.architecture);
        EXPECT_EQ(read.model, calibration_.model);
        EXPECT_EQ(read.model_hash, calibration_.model_hash);
        EXPECT_EQ(read.text_hash, calibration_.text_hash);
        EXPECT_EQ(read.tokens, calibration_.tokens);
        EXPECT_EQ(read.norm, calibration_.norm);
        EXPECT_EQ(read.centre, calibration_.centre);
        EXPECT_EQ(read.layer_codecs, calibration_.layer_codecs);
    }
    /// The message; empty: it was read, and is what was written.
    std::string refusal() const {
        try {
            expect_equal(*read_calibration(path_));
            return {};
        } catch (const Error& error) {
            return error.what();
        }
    }
    void expect_refusal(const std::string& part) const {
        const std::string message = refusal();
        EXPECT_NE(message.find(part), std::string::npos) << message;
        EXPECT_EQ(message.find(path_), 0u) << message;
        EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    }
    /// All that a file can hold.
    static Calibration make() {
        Calibration calibration = calibrate(Model::load(random_model("llama")), 1);
        calibration.text_hash = hash_of("a text");
        for (int layer = 0; layer < calibration.layers; ++layer)
            calibration.layer_codecs.push_back(codecs_of_bits(2 + layer % 3, 4 - layer % 3));
        return calibration;
    }
    static Calibration without_transforms(Calibration calibration) {
        calibration.norm.clear();
        calibration.centre.clear();
        return calibration;
    }
    /// The file's bytes of the first layers' bits.
    std::vector<char>::iterator find_bits(std::vector<char>& contents) const {
        // They stand before the numbers of the key transform, 32 bytes apart.
        const auto* const first = reinterpret_cast<const char*>(calibration_.norm.data());
        return std::search(contents.begin(), contents.end(), first, first + 16) - 32;
    }

    const Calibration calibration_ = make();
    const std::string path_ = scratch_file("calibration.gguf");
};

TEST_F(CalibrationFile, ReadsWhatWasWritten) {
    EXPECT_TRUE(is_calibration(path_));
    EXPECT_EQ(refusal(), "");
}

TEST_F(CalibrationFile, HoldsEitherOrBoth) {
    Calibration transforms = calibration_;
    transforms.layer_codecs.clear();
    for (const Calibration& one : {transforms, without_transforms(calibration_)}) {
        write_calibration(one, path_);
        const auto read = read_calibration(path_);
        EXPECT_EQ(read->norm, one.norm);
        EXPECT_EQ(read->centre, one.centre);
        EXPECT_EQ(read->layer_codecs, one.layer_codecs);
        EXPECT_EQ(read->has_transforms(), !one.norm.empty());
        EXPECT_EQ(read->bits_per_value(), one.layer_codecs.empty() ? 0.0 : 3.5);
    }
    EXPECT_THROW(write_calibration(without_transforms(transforms), path_), InvalidArgument);
    Calibration half = calibration_;
    half.centre.clear();
    EXPECT_THROW(write_calibration(half, path_), InvalidArgument);
}

TEST_F(CalibrationFile, BitsThatThereAreNotAreRefused) {
    Calibration bad = calibration_;
    bad.layer_codecs.pop_back();
    EXPECT_THROW(write_calibration(bad, path_), InvalidArgument);
    bad = calibration_;
    for (const Codec codec : {symmetric(3), affine(5), kF16}) {
        bad.layer_codecs[0].v = codec;
        EXPECT_THROW(write_calibration(bad, path_), InvalidArgument);
    }
    const std::vector<char> whole = contents_of(path_);
    for (const int bits : {0, 1, 5, 7, 16, 128, 255}) {
        std::vector<char> damaged = whole;
        const auto found = find_bits(damaged);
        ASSERT_EQ(found[0], 2);
        ASSERT_EQ(found[1], 4);
        found[3] = static_cast<char>(bits);
        write(damaged);
        expect_refusal("is a damaged calibration: layer 1: values of " + std::to_string(bits) +
                       " bits; supported are 2, 3, 4 and 8");
    }
    std::vector<char> damaged = whole;
    find_bits(damaged)[1] = 3;
    write(damaged);
    expect_refusal("is a damaged calibration: its contents are not those");
    for (const char* name : {"bits", "norm", "centre"}) {
        damaged = whole;
        const std::string tensor(name);
        const auto at = std::search(damaged.begin(), damaged.end(), tensor.begin(), tensor.end());
        ASSERT_NE(at, damaged.end());
        *at = 'x';
        write(damaged);
        expect_refusal("is a damaged calibration");
    }
}

TEST_F(CalibrationFile, WithoutTransformsIsRefusedWhereverItIsCutOrFlipped) {
    write_calibration(without_transforms(calibration_), path_);
    const std::vector<char> whole = contents_of(path_);
    std::mt19937 random(11);
    for (std::size_t size = 1; size < whole.size(); size += 7) {
        write({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)});
        // Up to the padding behind the last tensor all of it counts.
        if (size < whole.size() - 32) {
            EXPECT_THROW(read_calibration(path_), Error) << size;
        }
    }
    for (std::size_t at = 0; at < whole.size(); ++at) {
        std::vector<char> damaged = whole;
        damaged[at] ^= static_cast<char>(1u << random() % 8);
        write(damaged);
        try {
            EXPECT_EQ(read_calibration(path_)->layer_codecs, calibration_.layer_codecs) << at;
        } catch (const Error&) {
        }
    }
}

TEST_F(CalibrationFile, HashIsFnv1a) {
    // test vectors of draft-eastlake-fnv
    EXPECT_EQ(hash_of(""), "cbf29ce484222325");
    EXPECT_EQ(hash_of("a"), "af63dc4c8601ec8c");
    EXPECT_EQ(hash_of("foobar"), "85944171f73967e8");
}

TEST_F(CalibrationFile, EveryTruncationIsRefused) {
    const std::vector<char> whole = contents_of(path_);
    for (std::size_t size = 1; size < whole.size(); size += size < 1000 ? 7 : 97) {
        write({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)});
        expect_refusal("");
        EXPECT_NE(refusal(), "") << "first " << size << " bytes";
    }
}

/// Whatever is flipped: refused, or nothing that counts has changed.
TEST_F(CalibrationFile, FlippedBitsAreRefusedOrWithoutEffect) {
    const std::vector<char> whole = contents_of(path_);
    std::mt19937 random(7);
    int refused = 0;
    const std::size_t head_bytes = 1200; // metadata and directory: every byte of them
    const auto try_flip = [&](std::size_t at) {
        std::vector<char> damaged = whole;
        damaged[at] ^= static_cast<char>(1u << random() % 8);
        write(damaged);
        refused += refusal().empty() ? 0 : 1;
    };
    for (std::size_t at = 0; at < head_bytes; ++at) {
        try_flip(at);
    }
    EXPECT_GT(refused, 600);
    refused = 0;
    for (int round = 0; round < 300; ++round) {
        try_flip(whole.size() - 1 - random() % (calibration_.norm.size() * 2 * sizeof(float)));
    }
    EXPECT_EQ(refused, 300) << "a flipped bit of the numbers is always found";
}

TEST_F(CalibrationFile, NumbersBeyondTheCachesAreRefused) {
    const float infinity = std::numeric_limits<float>::infinity();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (const float norm : {0.0f, -1.0f, 1e-9f, 7e4f, infinity, nan}) {
        Calibration bad = calibration_;
        bad.norm[70] = norm;
        EXPECT_THROW(write_calibration(bad, path_), InvalidArgument) << norm;
    }
    for (const float centre : {-7e4f, infinity, nan}) {
        Calibration bad = calibration_;
        bad.centre[70] = centre;
        EXPECT_THROW(write_calibration(bad, path_), InvalidArgument) << centre;
    }
    std::vector<char> damaged = contents_of(path_);
    const auto* const first = reinterpret_cast<const char*>(calibration_.norm.data());
    const auto found = std::search(damaged.begin(), damaged.end(), first, first + 16);
    ASSERT_NE(found, damaged.end());
    std::memcpy(&*found + 70 * sizeof(float), &nan, sizeof nan);
    write(damaged);
    expect_refusal("norm of layer 0, KV head 1, channel 6 is nan");
}

TEST_F(CalibrationFile, OtherFilesAreRefused) {
    std::vector<char> contents = contents_of(path_);
    const std::string key = "innerkv.calibration.version";
    const auto found = std::search(contents.begin(), contents.end(), key.begin(), key.end());
    ASSERT_NE(found, contents.end());
    found[static_cast<std::ptrdiff_t>(key.size()) + 4] = 1; // behind the value's type
    write(contents);
    expect_refusal("is a calibration of version 1; this program reads version 2");
    write(contents_of(random_model("llama")));
    EXPECT_FALSE(is_calibration(path_));
    expect_refusal("is not a calibration");
    write({'h', 'e', 'l', 'l', 'o'});
    expect_refusal("is not a GGUF file");
}

TEST_F(CalibrationFile, CannotBeWritten) {
    const std::string path = "/no-such-folder/calibration.gguf";
    const std::string line = path + ": cannot be written: No such file or directory";
    const auto refusal = [](const std::function<void()>& call) -> std::string {
        try {
            call();
        } catch (const Error& error) {
            return error.what();
        }
        return "nothing was thrown";
    };
    EXPECT_EQ(refusal([&] { write_calibration(calibration_, path); }), line);
    EXPECT_EQ(refusal([&] { require_writable(path); }), line);
}

TEST_F(CalibrationFile, AskingLeavesNothingBehind) {
    const std::string path = scratch_file("asked.gguf");
    require_writable(path);
    const std::filesystem::path directory = std::filesystem::path(path).parent_path();
    for (const auto& entry : std::filesystem::directory_iterator(directory))
        EXPECT_FALSE(entry.path().string().starts_with(path)) << entry.path();
    const std::vector<char> contents = contents_of(path_);
    require_writable(path_);
    EXPECT_EQ(contents_of(path_), contents);
}

/// What another program may call its own unfinished file.
TEST_F(CalibrationFile, FilesBesideItAreLeftAlone) {
    const std::string path = scratch_file("beside.gguf");
    const std::string other = path + ".part";
    std::ofstream(other) << "not ours";
    write_calibration(calibration_, path);
    EXPECT_EQ(contents_of(path), contents_of(path_));
    EXPECT_EQ(contents_of(other), (std::vector<char>{'n', 'o', 't', ' ', 'o', 'u', 'r', 's'}));
}

TEST_F(CalibrationFile, LinksToNothingYetAreFollowed) {
    const std::string target = scratch_file("target.gguf");
    const std::string link = scratch_file("link-to-target");
    const std::string loop = scratch_file("loop");
    std::filesystem::create_symlink(std::filesystem::path(target).filename(), link);
    std::filesystem::create_symlink(loop, loop);
    require_writable(link);
    write_calibration(calibration_, link);
    EXPECT_TRUE(std::filesystem::is_symlink(link));
    EXPECT_EQ(contents_of(target), contents_of(path_));
    EXPECT_THROW(write_calibration(calibration_, loop), Error);
    EXPECT_TRUE(std::filesystem::is_symlink(loop));
    for (const std::string& made : {target, link, loop}) std::remove(made.c_str());
}

/// As root, a file renamed over a device would replace it.
TEST_F(CalibrationFile, NothingButARegularFileIsReplaced) {
    const std::string fifo = scratch_file("fifo");
    const std::string link = scratch_file("link");
    ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
    std::filesystem::create_symlink(fifo, link);
    EXPECT_THROW(write_calibration(calibration_, fifo), Error);
    EXPECT_THROW(write_calibration(calibration_, link), Error);
    EXPECT_TRUE(std::filesystem::is_fifo(fifo));
    EXPECT_TRUE(std::filesystem::is_symlink(link));
    std::filesystem::remove(link);
    std::filesystem::remove(fifo);
}

TEST_F(CalibrationFile, IsWrittenThroughALink) {
    const std::string link = scratch_file("link");
    std::filesystem::create_symlink(path_, link);
    write({'x'});
    write_calibration(calibration_, link);
    EXPECT_TRUE(std::filesystem::is_symlink(link));
    EXPECT_EQ(refusal(), "");
    std::filesystem::remove(link);
}

TEST_F(CalibrationFile, BelongsToOneModelAndToPresetsThatQuantize) {
    SessionOptions options = make_options("k4v4", 500);
    options.threads = 1;
    options.calibration = read_calibration(path_);
    const std::shared_ptr<Model> model = Model::load(random_model("llama"));
    Session session(model, options);
    session.prompt(random_tokens(400, model->info().vocabulary_size, 20));
    EXPECT_GT(session.cache_report().quantized_pages, 0);
    const KeyTransform& used = session.view(1).transforms[1];
    const auto first = calibration_.norm.begin() + 3 * model->info().head_dim;
    EXPECT_TRUE(std::equal(used.norm, used.norm + model->info().head_dim, first));
    EXPECT_TRUE(used.rotate);
    EXPECT_TRUE(session.view(1).centres.epochs.empty());
    // the same shapes, other weights
    EXPECT_THROW(Session(Model::load(random_model("llama-linear")), options), ModelError);
    EXPECT_THROW(Session(Model::load(random_model("gemma3")), options), ModelError);
    options.preset = find_preset("f16");
    EXPECT_THROW(Session(model, options), InvalidArgument);
}

/// Bytes of a quantized page in each layer, as a session has them.
std::vector<std::size_t> page_bytes_of(const Session& session, int layers) {
    std::vector<std::size_t> bytes(static_cast<std::size_t>(layers));
    for (int layer = 0; layer < layers; ++layer)
        bytes[static_cast<std::size_t>(layer)] = session.view(layer).quantized.page_bytes;
    return bytes;
}

TEST_F(CalibrationFile, LayersHaveItsBits) {
    write_calibration(without_transforms(calibration_), path_);
    const std::shared_ptr<Model> model = Model::load(random_model("llama"));
    const ModelInfo& info = model->info();
    SessionOptions options = make_options("base", 500);
    options.threads = 1;
    options.calibration = read_calibration(path_);
    Session session(model, options);
    const std::vector<Token> tokens = random_tokens(400, info.vocabulary_size, 20);
    session.prompt(tokens);
    std::vector<std::size_t> expected;
    std::string digits = "base+layers=";
    for (const LayerCodecs& layer : calibration_.layer_codecs) {
        expected.push_back(PageFormat{layer.k, layer.v, info.head_dim}.page_bytes());
        digits += std::to_string(layer.k.bits) + std::to_string(layer.v.bits);
    }
    EXPECT_EQ(page_bytes_of(session, info.layers), expected);
    EXPECT_EQ(session.cache_report().bits_per_value, calibration_.bits_per_value());
    // The key transform is the sequence's own.
    EXPECT_FALSE(session.view(1).centres.epochs.empty());

    SessionOptions named = make_options(digits, 500);
    named.threads = 1;
    Session same(model, named);
    same.prompt(tokens);
    EXPECT_TRUE(std::ranges::equal(session.logits(), same.logits()));
    named.calibration = options.calibration;
    EXPECT_THROW(Session(model, named), InvalidArgument);
    named = make_options("base+layers=33", 500);
    EXPECT_THROW(Session(model, named), InvalidArgument);
}

/// Layers that are all like the preset's are the preset's.
TEST(LayerCodecs, OfThePresetChangeNothing) {
    for (const char* name : {"llama-long", "gemma3"}) {
        const std::shared_ptr<Model> model = Model::load(random_model(name));
        const ModelInfo& info = model->info();
        std::string layers = "base+layers=";
        for (int layer = 0; layer < info.layers; ++layer) layers += "33";
        const std::vector<Token> tokens = random_tokens(500, info.vocabulary_size, 3);
        std::vector<std::vector<float>> logits;
        std::vector<std::size_t> bytes;
        for (const std::string& cache : {std::string("base"), layers}) {
            SessionOptions options = make_options(cache, 600);
            options.threads = 1;
            Session session(model, options);
            session.prompt(tokens);
            session.decode(tokens.front());
            logits.emplace_back(session.logits().begin(), session.logits().end());
            bytes.push_back(session.cache_report().bytes);
        }
        EXPECT_EQ(logits[0], logits[1]) << name;
        EXPECT_EQ(bytes[0], bytes[1]) << name;
    }
}

} // namespace
} // namespace innerkv::runner::test
