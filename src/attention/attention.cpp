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
    /// Items that each merge still waits for.
    std::vector<std::atomic<int>> unfinished;
    /// States of items whose strip is split, at Item::state * state_size.
    std::size_t state_size = 0;
    std::unique_ptr<float[]> states;

    Impl(const AttentionShape& attention_shape, std::span<const QueryBlock> query_blocks,
         const AttentionOptions& options)
        : shape(attention_shape), blocks(query_blocks.begin(), query_blocks.end()),
          kernel(cpu::select_kernel(options.isa)), arithmetic(options.arithmetic),
          partition(shape, checked(shape, blocks), checked_threads(options.threads)),
          unfinished(static_cast<std::size_t>(partition.merges())) {
        int most_rows = 0;
        for (const Strip& strip : partition.strips()) {
            for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head)
                unfinished[static_cast<std::size_t>(strip.first_merge + kv_head)] = strip.splits;
            if (strip.splits > 1) most_rows = std::max(most_rows, strip.rows);
        }
        state_size = state_floats(most_rows, padded_dim());
        states = std::make_unique_for_overwrite<float[]>(
            static_cast<std::size_t>(partition.states()) * state_size);
    }

    int padded_dim() const { return shape.format.padded_dim(); }

    SoftmaxState stored_state(int index, int rows) const {
        return state_at(states.get() + static_cast<std::size_t>(index) * state_size, rows,
                        padded_dim());
    }

    void run(int index) noexcept {
        const Item item = partition.item(index);
        const Strip& strip = *item.strip;
        const ItemRows rows{shape, blocks[static_cast<std::size_t>(strip.block)], item.kv_head,
                            strip.first_row, strip.rows};
        // The state that is being added to lies on the stack, where it is in the first-level cache.
        alignas(64) float memory[state_floats(cpu::kMaxRows, cpu::kMaxDim)];
        const SoftmaxState state = state_at(memory, strip.rows, padded_dim());
        clear_state(state, strip.rows, padded_dim());
        attend_pages(kernel, arithmetic, rows, partition.share(strip, item.split), state);
        if (strip.splits > 1) {
            copy_state(state, stored_state(item.state, strip.rows), strip.rows, padded_dim());
            if (unfinished[static_cast<std::size_t>(item.merge)].fetch_sub(
                    1, std::memory_order_acq_rel) != 1)
                return;
            // The last one: in the order of pages, so that the result does not depend on who it is.
            clear_state(state, strip.rows, padded_dim());
            for (int split = 0; split < strip.splits; ++split)
                merge_state(state, stored_state(item.state - item.split + split, strip.rows),
                            strip.rows, padded_dim());
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
