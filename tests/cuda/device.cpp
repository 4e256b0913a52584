// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "innerkv/codec.h"

namespace innerkv::test {
namespace {

std::uint16_t bf16_from_float(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float float_from_bf16(std::uint16_t bits) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

std::size_t element_bytes(RowType type) { return type == RowType::f32 ? 4 : 2; }

int most_tokens(const Batch& batch) {
    int most = 1;
    for (const QueryBlock& block : batch.blocks) most = std::max(most, block.tokens);
    return most;
}

std::vector<cuda::SequenceQueries> queries_of(const Batch& batch) {
    std::vector<cuda::SequenceQueries> queries;
    for (const QueryBlock& block : batch.blocks)
        queries.push_back({block.sequence, block.first_position, block.tokens});
    return queries;
}

} // namespace

void OnDevice::SetUp() {
    if (cuda::devices().empty()) GTEST_SKIP() << "no device: " << cuda::unavailable_reason();
}

void expect_success(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

DeviceBuffer::DeviceBuffer(std::size_t bytes) {
    void* data = nullptr;
    expect_success(cudaMalloc(&data, std::max<std::size_t>(bytes, 1)));
    data_.reset(static_cast<std::byte*>(data));
    expect_success(cudaMemset(data, 0xff, bytes));
}
DeviceBuffer::DeviceBuffer(const void* host, std::size_t bytes) : DeviceBuffer(bytes) {
    write(host, bytes);
}
void DeviceBuffer::read(void* host, std::size_t bytes) const {
    expect_success(cudaMemcpy(host, data_.get(), bytes, cudaMemcpyDeviceToHost));
}
void DeviceBuffer::write(const void* host, std::size_t bytes) {
    expect_success(cudaMemcpy(data_.get(), host, bytes, cudaMemcpyHostToDevice));
}
void DeviceBuffer::Free::operator()(std::byte* data) const { cudaFree(data); }

Graph::Graph(const std::function<void(cuda::Stream)>& work) {
    expect_success(cudaStreamCreate(&stream_));
    expect_success(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    work(stream_);
    expect_success(cudaStreamEndCapture(stream_, &graph_));
    expect_success(cudaGraphInstantiate(&executable_, graph_, 0));
}
Graph::~Graph() {
    cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(graph_);
    cudaStreamDestroy(stream_);
}
void Graph::replay() const {
    expect_success(cudaGraphLaunch(executable_, stream_));
    expect_success(cudaStreamSynchronize(stream_));
}

DeviceBatch::DeviceBatch(const Batch& batch, RowType type, int tokens)
    : tokens_(std::max(tokens, most_tokens(batch))), type_(type),
      head_stride_(batch.shape.format.head_dim + 3),
      token_stride_(batch.shape.q_heads * head_stride_ + 5),
      sequence_stride_(tokens_ * token_stride_ + 7),
      elements_(static_cast<std::size_t>(sequence_stride_) * batch.blocks.size()),
      sequences_(batch.shape, queries_of(batch)), q_(elements_ * 4), out_(elements_ * 4),
      log_sum_exp_(batch.blocks.size() * static_cast<std::size_t>(tokens_ * batch.shape.q_heads) *
                   sizeof(float)) {
    std::vector<float> rows(elements_, std::bit_cast<float>(0xffffffffu));
    for (std::size_t i = 0; i < batch.blocks.size(); ++i) {
        const QueryBlock& block = batch.blocks[i];
        for (int token = 0; token < block.tokens; ++token)
            for (int head = 0; head < batch.shape.q_heads; ++head)
                std::copy_n(block.q + token * block.q_token_stride + head * block.q_head_stride,
                            batch.shape.format.head_dim,
                            rows.data() + static_cast<std::ptrdiff_t>(i) * sequence_stride_ +
                                token * token_stride_ + head * head_stride_);
    }
    if (type == RowType::f32) {
        q_.write(rows.data(), elements_ * sizeof(float));
    } else {
        std::vector<std::uint16_t> narrow(elements_);
        std::transform(rows.begin(), rows.end(), narrow.begin(),
                       type == RowType::f16 ? f16_from_float : bf16_from_float);
        q_.write(narrow.data(), elements_ * 2);
    }
    call_.sequences = sequences_.data();
    call_.count = sequences_.size();
    call_.q = q_.as();
    call_.out = out_.as();
    call_.q_type = call_.out_type = type;
    call_.q_sequence_stride = call_.out_sequence_stride = sequence_stride_;
    call_.q_token_stride = call_.out_token_stride = token_stride_;
    call_.q_head_stride = call_.out_head_stride = head_stride_;
    call_.log_sum_exp = log_sum_exp_.as<float>();
}

cuda::AttentionLimits DeviceBatch::limits() const { return {0, call_.count, tokens_, 0}; }

void DeviceBatch::clear_outputs() {
    expect_success(cudaMemset(out_.as(), 0xff, elements_ * element_bytes(type_)));
}

void DeviceBatch::fetch(const Batch& batch) const {
    std::vector<float> rows(elements_);
    if (type_ == RowType::f32) {
        out_.read(rows.data(), elements_ * sizeof(float));
    } else {
        std::vector<std::uint16_t> narrow(elements_);
        out_.read(narrow.data(), elements_ * 2);
        std::transform(narrow.begin(), narrow.end(), rows.begin(),
                       type_ == RowType::f16 ? float_from_f16 : float_from_bf16);
    }
    const int heads = batch.shape.q_heads;
    std::vector<float> sums(batch.blocks.size() * static_cast<std::size_t>(tokens_ * heads));
    log_sum_exp_.read(sums.data(), sums.size() * sizeof(float));
    for (std::size_t i = 0; i < batch.blocks.size(); ++i) {
        const QueryBlock& block = batch.blocks[i];
        for (int token = 0; token < block.tokens; ++token)
            for (int head = 0; head < heads; ++head) {
                std::copy_n(rows.data() + static_cast<std::ptrdiff_t>(i) * sequence_stride_ +
                                token * token_stride_ + head * head_stride_,
                            batch.shape.format.head_dim,
                            block.out + token * block.out_token_stride +
                                head * block.out_head_stride);
                block.log_sum_exp[token * heads + head] =
                    sums[(i * static_cast<std::size_t>(tokens_) + static_cast<std::size_t>(token)) *
                             static_cast<std::size_t>(heads) +
                         static_cast<std::size_t>(head)];
            }
    }
}

Result attend_on_device(const Batch& batch, RowType type, cuda::AttentionLimits limits) {
    return collect(batch, [&] {
        const DeviceBatch device(batch, type);
        limits.max_sequences = device.limits().max_sequences;
        limits.max_query_tokens = device.limits().max_query_tokens;
        cuda::Attention attention(batch.shape, limits);
        attention.run(device.call());
        expect_success(cudaDeviceSynchronize());
        device.fetch(batch);
    });
}

void expect_device_close_to_reference(Batch& batch, const cuda::AttentionLimits& limits) {
    const Result before = attend_on_device(batch, RowType::f32, limits);
    batch.poison_unseen();
    const Result expected = reference(batch);
    const Result result = attend_on_device(batch, RowType::f32, limits);
    EXPECT_EQ(result.out, before.out);
    EXPECT_EQ(result.log_sum_exp, before.log_sum_exp);
    if (!batch.shape.format.quantized()) {
        // fp16's rounding of queries and of probabilities.
        EXPECT_LT(largest_error(result, expected), 2e-3);
        EXPECT_LT(log_sum_exp_error(result, expected), 1e-3);
        return;
    }
    // The bounds of the CPU's integer arithmetic. It errs by more on some of these batches, and then so may a
    // device, which rounds the same numbers.
    constexpr double kAlike = 1.25;
    const Result host = attend(batch, Arithmetic::integer, "");
    EXPECT_LT(mean_error(result, expected), std::max(0.01, kAlike * mean_error(host, expected)));
    EXPECT_LT(largest_error(result, expected),
              std::max(0.02, kAlike * largest_error(host, expected)));
    EXPECT_LT(log_sum_exp_error(result, expected),
              std::max(5e-3, kAlike * log_sum_exp_error(host, expected)));
}

void expect_only_outputs_written(const Batch& batch, const DeviceBatch& device, int without) {
    const cuda::AttentionCall& call = device.call();
    const std::size_t sequence = static_cast<std::size_t>(call.out_sequence_stride);
    std::vector<float> out(batch.blocks.size() * sequence);
    expect_success(
        cudaMemcpy(out.data(), call.out, out.size() * sizeof(float), cudaMemcpyDeviceToHost));
    for (std::size_t i = 0; i < out.size(); ++i) {
        const auto at = static_cast<std::ptrdiff_t>(i % sequence);
        const auto token = at / call.out_token_stride;
        const auto head = at % call.out_token_stride / call.out_head_stride;
        const auto channel = at % call.out_token_stride % call.out_head_stride;
        const bool written = static_cast<int>(i / sequence) != without &&
                             token < batch.blocks[i / sequence].tokens &&
                             head < batch.shape.q_heads && channel < batch.shape.format.head_dim;
        EXPECT_EQ(std::isnan(out[i]), !written) << i;
    }
}

} // namespace innerkv::test
