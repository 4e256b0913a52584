// SPDX-License-Identifier: Apache-2.0
#include "innerkv/attention.h"

#include <algorithm>
#include <atomic>
#include <string>

#include "attention/arguments.h"
#include "attention/item.h"
#include "attention/merge.h"
#include "attention/partition.h"
#include "cpu/dispatch.h"
#include "innerkv/error.h"

namespace innerkv {
namespace {

int checked_threads(int threads) {
    constexpr int kMostThreads = 1 << 16;
    if (threads < 1 || threads > kMostThreads)
        throw InvalidArgument("attention: " + std::to_string(threads) +
                              " threads; supported are 1 to " + std::to_string(kMostThreads));
    return threads;
}

/// Checks, then hands the blocks on: the first of Impl's initializers that can fail.
std::span<const QueryBlock> checked(const AttentionShape& shape,
                                    std::span<const QueryBlock> blocks) {
    check_attention_arguments(shape, blocks);
    return blocks;
}

} // namespace

std::vector<std::string_view> available_isas() {
    std::vector<std::string_view> names;
    for (const cpu::Kernel* kernel : cpu::available_kernels()) names.emplace_back(kernel->name);
    return names;
}

std::string_view select_isa(std::string_view isa) { return cpu::select_kernel(isa).name; }

struct Attention::Impl {
    AttentionShape shape;
    std::vector<QueryBlock> blocks;
    const cpu::Kernel& kernel;
    Arithmetic arithmetic;
    Partition partition;
    /// Items that each output still waits for, [strips, kv_heads].
    std::vector<std::atomic<int>> unfinished;
    /// Of items whose results are merged, at Item::state * state_size.
    std::size_t state_size = 0;
    std::unique_ptr<float[]> states;

    Impl(const AttentionShape& attention_shape, std::span<const QueryBlock> query_blocks,
         const AttentionOptions& options)
        : shape(attention_shape), blocks(query_blocks.begin(), query_blocks.end()),
          kernel(cpu::select_kernel(options.isa)), arithmetic(options.arithmetic),
          partition(shape, checked(shape, blocks), checked_threads(options.threads)),
          unfinished(partition.strips().size() * static_cast<std::size_t>(shape.kv_heads)),
          state_size(state_floats(partition.most_rows(), padded_dim())),
          states(std::make_unique_for_overwrite<float[]>(
              static_cast<std::size_t>(partition.states()) * state_size)) {
        auto counter = unfinished.begin();
        for (int strip = 0; strip < static_cast<int>(partition.strips().size()); ++strip)
            for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head)
                *counter++ = partition.items_of(strip);
    }

    int padded_dim() const { return shape.format.padded_dim(); }

    SoftmaxState stored_state(int index, int rows) const {
        return state_at(states.get() + static_cast<std::size_t>(index) * state_size, rows,
                        padded_dim());
    }

    void add_rows(const Member& member, ItemRows& rows) const {
        const Strip& strip = partition.strips()[static_cast<std::size_t>(member.strip)];
        rows.add(blocks[static_cast<std::size_t>(strip.block)], strip);
    }

    void run(int index) noexcept {
        const Item item = partition.item(index);
        const Bundle& bundle = *item.bundle;
        ItemRows rows(shape, item.kv_head);
        for (const Member& member : partition.members(bundle)) add_rows(member, rows);
        // The state that is being added to lies on the stack, where it is in the first-level cache.
        alignas(64) float memory[state_floats(cpu::kMaxRows, cpu::kMaxDim)];
        const SoftmaxState state = state_at(memory, bundle.rows, padded_dim());
        clear_state(state, bundle.rows, padded_dim());
        attend_pages(kernel, arithmetic, rows, item.pages, state);
        if (item.state < 0) {
            write_rows(rows, state);
            return;
        }
        copy_state(state, stored_state(item.state, bundle.rows), bundle.rows, padded_dim());
        for (const Member& member : partition.members(bundle))
            if (is_last_of(member.strip, item.kv_head)) merge(member.strip, item.kv_head);
    }

    bool is_last_of(int strip, int kv_head) noexcept {
        auto& left = unfinished[static_cast<std::size_t>(strip * shape.kv_heads + kv_head)];
        return left.fetch_sub(1, std::memory_order_acq_rel) == 1;
    }

    /// In the order of tokens, so that the result does not depend on who was last.
    void merge(int strip, int kv_head) const noexcept {
        const Member* member = partition.first_member(strip);
        ItemRows rows(shape, kv_head);
        add_rows(*member, rows);
        alignas(64) float memory[state_floats(cpu::kMaxRows, cpu::kMaxDim)];
        const SoftmaxState state = state_at(memory, rows.rows, padded_dim());
        clear_state(state, rows.rows, padded_dim());
        for (; member; member = partition.next_member(*member)) {
            const Bundle& bundle = partition.bundle(*member);
            const int first = bundle.first_state + kv_head * bundle.splits;
            for (int split = 0; split < bundle.splits; ++split)
                merge_state(
                    state,
                    rows_from(stored_state(first + split, bundle.rows), member->row, padded_dim()),
                    rows.rows, padded_dim());
        }
        write_rows(rows, state);
    }
};

Attention::Attention(const AttentionShape& shape, std::span<const QueryBlock> blocks,
                     const AttentionOptions& options)
    : impl_(std::make_unique<Impl>(shape, blocks, options)) {}
Attention::~Attention() = default;
Attention::Attention(Attention&&) noexcept = default;
Attention& Attention::operator=(Attention&&) noexcept = default;

int Attention::items() const { return impl_->partition.items(); }
void Attention::run(int item) noexcept { impl_->run(item); }
void Attention::run_all() noexcept {
    for (int item = 0; item < items(); ++item) run(item);
}

} // namespace innerkv
