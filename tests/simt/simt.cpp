// SPDX-License-Identifier: Apache-2.0
// Coroutines of a block, a stack each. A warp's lanes take turns until all of them have met; its next lanes go on when
// all warps have met as well.
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "launch.h"
#include "simt.h"

namespace simt {
namespace {

constexpr std::size_t kStackBytes = std::size_t{128} << 10;
constexpr unsigned char kUnwritten = 0xff; ///< floats of it are NaN

struct Warp {
    Words brought[2][kWarp]; ///< of this meeting and the one before
    int meetings = 0;
    int here = 0;
};

struct Lane {
    ucontext_t context{};
    std::unique_ptr<std::byte[]> stack;
    Builtins builtins;
    int meetings = 0;       ///< of its warp that it has been to
    int block_meetings = 0; ///< of the block
    bool done = false;
};

struct Block {
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    ucontext_t scheduler{};
    const std::function<void()>* kernel = nullptr;
    std::span<unsigned char> shared;
    std::size_t shared_bytes = 0;
    std::size_t running = 0;
    int meetings = 0;
    int here = 0;
    int or_of[2] = {0, 0}; ///< predicates of this meeting and the one before
};

Block* current = nullptr;

Lane& running_lane() { return current->lanes[current->running]; }
Warp& running_warp() { return current->warps[current->running / kWarp]; }

void give_way() { swapcontext(&running_lane().context, &current->scheduler); }

void run_lane() {
    (*current->kernel)();
    running_lane().done = true;
    give_way();
}

/// Lanes of a warp in turns until each is done or waits for the block.
bool run_warp(std::size_t warp) {
    bool moved = false;
    for (bool any = true; any;) {
        any = false;
        for (std::size_t l = warp * kWarp; l < (warp + 1) * kWarp; ++l) {
            Lane& lane = current->lanes[l];
            const bool waits_for_block = lane.block_meetings > current->meetings;
            const bool waits_for_warp = lane.meetings > current->warps[warp].meetings;
            if (lane.done || waits_for_block || waits_for_warp) continue;
            current->running = l;
            swapcontext(&current->scheduler, &lane.context);
            any = moved = true;
        }
    }
    return moved;
}

void prepare(Lane& lane, const Builtins& builtins) {
    lane.builtins = builtins;
    lane.meetings = lane.block_meetings = 0;
    lane.done = false;
    if (!lane.stack) lane.stack = std::make_unique<std::byte[]>(kStackBytes);
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.get();
    lane.context.uc_stack.ss_size = kStackBytes;
    lane.context.uc_link = nullptr;
    makecontext(&lane.context, run_lane, 0);
}

void prepare(Block& block, const Place& index, const Place& threads, const Place& blocks) {
    unsigned thread = 0;
    for (Lane& lane : block.lanes) prepare(lane, {{thread++, 0, 0}, index, threads, blocks});
    for (Warp& warp : block.warps) warp.meetings = warp.here = 0;
    block.meetings = block.here = 0;
}

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "simt: %s\n", what);
    std::abort();
}

void run_block(Block& block) {
    current = &block;
    std::fill(block.shared.begin(), block.shared.end(), kUnwritten);
    for (bool moved = true; moved;) {
        moved = false;
        for (std::size_t warp = 0; warp < block.warps.size(); ++warp) moved |= run_warp(warp);
    }
    current = nullptr;
    for (const Lane& lane : block.lanes)
        if (!lane.done) fail("threads of a warp or a block do not all meet");
    for (const unsigned char byte : block.shared.subspan(block.shared_bytes))
        if (byte != kUnwritten) fail("a block writes behind its shared memory");
}

} // namespace

const Builtins& builtins() { return running_lane().builtins; }
int lane() { return static_cast<int>(running_lane().builtins.thread.x % kWarp); }

const Words* meet_warp(const Words& mine) {
    Lane& own = running_lane();
    Warp& warp = running_warp();
    Words* const brought = warp.brought[own.meetings % 2];
    brought[lane()] = mine;
    ++own.meetings;
    if (++warp.here == kWarp) {
        warp.here = 0;
        ++warp.meetings;
    } else {
        give_way();
    }
    return brought;
}

namespace {

void meet_block_with(int predicate) {
    Lane& own = running_lane();
    current->or_of[own.block_meetings % 2] |= predicate;
    ++own.block_meetings;
    if (++current->here == static_cast<int>(current->lanes.size())) {
        current->here = 0;
        ++current->meetings;
        current->or_of[current->meetings % 2] = 0;
    } else {
        give_way();
    }
}

} // namespace

void meet_block() { meet_block_with(0); }

void launch(const Place& blocks, const Place& threads, std::span<unsigned char> shared,
            std::size_t shared_bytes, const std::function<void()>& kernel) {
    static Block block; // stacks are kept
    block.lanes.resize(threads.x);
    block.warps.resize(threads.x / kWarp);
    block.kernel = &kernel;
    block.shared = shared;
    block.shared_bytes = shared_bytes;
    for (unsigned z = 0; z < blocks.z; ++z)
        for (unsigned y = 0; y < blocks.y; ++y)
            for (unsigned x = 0; x < blocks.x; ++x) {
                prepare(block, {x, y, z}, threads, blocks);
                run_block(block);
            }
}

} // namespace simt

int __syncthreads_or(int predicate) {
    const int at = simt::running_lane().block_meetings % 2;
    simt::meet_block_with(predicate != 0 ? 1 : 0);
    return simt::current->or_of[at];
}
