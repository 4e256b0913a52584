// SPDX-License-Identifier: Apache-2.0
// Slots come, grow, are cut and go: what the host does between steps.
#include <algorithm>
#include <limits>
#include <string>

#include "cuda/arguments.h"
#include "cuda/cache/append.h"
#include "cuda/cache/cache.h"

namespace innerkv::cuda {
namespace {

using paging::divide_up;

void synchronize() { check(cudaDeviceSynchronize(), "waiting for a device"); }

void check_count(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
    if (value >= least && value <= most) return;
    throw InvalidArgument(std::string("cuda cache: ") + name + " is " + std::to_string(value) +
                          "; supported are " + std::to_string(least) + " to " +
                          std::to_string(most));
}

/// Of a slot whose tokens do not ask; a slot that was never used has no tables yet.
Sequence seen_by_attention(const LayerParams& layer, const SlotState& state) {
    return state.in_use != 0 ? shown(layer, state, 0) : Sequence{};
}

/// Takes groups until the table has `count` entries more.
void extend(Table& table, DevicePool& pool, std::int64_t count) {
    const std::size_t first = table.host.size();
    for (std::int64_t i = 0; i < count; ++i) table.host.push_back(pool.take());
    table.write(first);
}

void give_back(Table& table, DevicePool& pool) {
    for (std::byte* group : table.host) pool.give_back(group);
    table.host.clear();
}

void check_pool(const char* kind, std::int64_t wanted, const DevicePool& pool) {
    if (wanted <= pool.free()) return;
    throw OutOfPages(std::string("cuda cache: ") + std::to_string(wanted) + " more " + kind +
                     " asked, " + std::to_string(pool.free()) +
                     " are free; remove a sequence, or make the cache for more tokens");
}

} // namespace

void DeviceCache::Impl::check_slot(int slot) const {
    if (slot >= 0 && slot < config.max_sequences && in_use[static_cast<std::size_t>(slot)]) return;
    throw InvalidArgument("cuda cache: slot " + std::to_string(slot) +
                          " is not in use; slots are made by create() or load()");
}

void DeviceCache::Impl::check_layer(int layer) const {
    check_count("layer", layer, 0, config.layers - 1);
}

bool DeviceCache::Impl::pools_quantized(int layer) const {
    const auto at = static_cast<std::size_t>(layer);
    return rules[at].quantizes && layouts[at].windowed_pages == 0;
}

bool DeviceCache::Impl::pools_recent(int layer) const {
    return layouts[static_cast<std::size_t>(layer)].recent_pages == 0;
}

std::vector<SlotState> DeviceCache::Impl::read_states(int slot) const {
    const DeviceScope scope(device);
    synchronize();
    std::vector<SlotState> result(rules.size());
    check(cudaMemcpy2D(result.data(), sizeof(SlotState), states + slot,
                       sizeof(SlotState) * static_cast<std::size_t>(config.max_sequences),
                       sizeof(SlotState), rules.size(), cudaMemcpyDeviceToHost),
          "reading a slot");
    return result;
}

void DeviceCache::Impl::write_states(int slot, const std::vector<SlotState>& written) const {
    const DeviceScope scope(device);
    synchronize();
    std::vector<Sequence> seen;
    for (std::size_t layer = 0; layer < rules.size(); ++layer)
        seen.push_back(seen_by_attention(params[layer], written[layer]));
    const auto slots = static_cast<std::size_t>(config.max_sequences);
    check(cudaMemcpy2D(states + slot, sizeof(SlotState) * slots, written.data(), sizeof(SlotState),
                       sizeof(SlotState), rules.size(), cudaMemcpyHostToDevice),
          "writing a slot");
    check(cudaMemcpy2D(sequences + slot, sizeof(Sequence) * slots, seen.data(), sizeof(Sequence),
                       sizeof(Sequence), rules.size(), cudaMemcpyHostToDevice),
          "writing a slot");
    finish_writes();
}

std::vector<SlotState> DeviceCache::Impl::read_all_states() const {
    const DeviceScope scope(device);
    synchronize();
    std::vector<SlotState> all(slot_pages.size());
    check(cudaMemcpy(all.data(), states, all.size() * sizeof(SlotState), cudaMemcpyDeviceToHost),
          "reading slots");
    return all;
}

void DeviceCache::Impl::write_all_states(const std::vector<SlotState>& written) const {
    const DeviceScope scope(device);
    synchronize();
    std::vector<Sequence> seen;
    for (int layer = 0; layer < config.layers; ++layer)
        for (int slot = 0; slot < config.max_sequences; ++slot)
            seen.push_back(seen_by_attention(params[static_cast<std::size_t>(layer)],
                                             written[index(layer, slot)]));
    check(cudaMemcpy(states, written.data(), written.size() * sizeof(SlotState),
                     cudaMemcpyHostToDevice),
          "writing slots");
    check(
        cudaMemcpy(sequences, seen.data(), seen.size() * sizeof(Sequence), cudaMemcpyHostToDevice),
        "writing slots");
    finish_writes();
}

std::vector<SlotState> DeviceCache::Impl::states_of(const std::vector<SlotState>& all,
                                                    int slot) const {
    std::vector<SlotState> result;
    for (int layer = 0; layer < config.layers; ++layer) result.push_back(all[index(layer, slot)]);
    return result;
}

int DeviceCache::Impl::create() {
    const auto free = std::find(in_use.begin(), in_use.end(), false);
    if (free == in_use.end())
        throw OutOfPages("cuda cache: one more sequence asked; it was made for max_sequences = " +
                         std::to_string(config.max_sequences) +
                         "; remove one, or make the cache for more");
    const auto slot = static_cast<int>(free - in_use.begin());
    std::vector<SlotState> fresh(rules.size());
    for (int layer = 0; layer < config.layers; ++layer)
        fresh[static_cast<std::size_t>(layer)] = fresh_states[index(layer, slot)];
    const DeviceScope scope(device);
    check(cudaMemset(faults + slot, 0, sizeof(Fault)), "clearing a slot");
    write_states(slot, fresh);
    *free = true;
    return slot;
}

void DeviceCache::Impl::remove(int slot) {
    check_slot(slot);
    std::vector<SlotState> nothing(rules.size());
    for (int layer = 0; layer < config.layers; ++layer) {
        SlotState& state = nothing[static_cast<std::size_t>(layer)];
        state = fresh_states[index(layer, slot)];
        state.in_use = 0;
    }
    write_states(slot, nothing);
    write_fault(slot, {});
    in_use[static_cast<std::size_t>(slot)] = false;
    for (int layer = 0; layer < config.layers; ++layer) {
        SlotPages& own = slot_pages[index(layer, slot)];
        if (pools_recent(layer)) give_back(own.recent, f16_pool);
        if (!pools_quantized(layer)) continue;
        give_back(own.quantized, quantized_pool);
        give_back(own.epochs, centre_pool);
    }
}

DeviceCache::Impl::Groups DeviceCache::Impl::groups_for(int layer, std::int64_t grid_pages,
                                                        std::int64_t quantized) const {
    Groups result;
    if (pools_recent(layer)) result.f16 = grid_pages;
    if (!pools_quantized(layer)) return result;
    result.quantized = quantized;
    const int epoch_pages = rules[static_cast<std::size_t>(layer)].epoch_pages;
    if (epoch_pages > 0) result.centres = divide_up(quantized, epoch_pages);
    return result;
}

DeviceCache::Impl::Groups DeviceCache::Impl::groups_for(int layer, std::int64_t length) const {
    const paging::LayerRule& rule = rules[static_cast<std::size_t>(layer)];
    return groups_for(layer, rule.grid_pages(length), rule.settled_pages(length));
}

DeviceCache::Impl::Groups DeviceCache::Impl::lack(int layer, int slot, const Groups& wanted) const {
    const SlotPages& own = slot_pages[index(layer, slot)];
    const auto more = [](std::int64_t groups, const Table& table) {
        return std::max<std::int64_t>(0, groups - static_cast<std::int64_t>(table.host.size()));
    };
    return {more(wanted.quantized, own.quantized), more(wanted.f16, own.recent),
            more(wanted.centres, own.epochs)};
}

void DeviceCache::Impl::check_free(const Groups& wanted) const {
    check_pool("quantized page groups", wanted.quantized, quantized_pool);
    check_pool("fp16 page groups", wanted.f16, f16_pool);
    check_pool("centres", wanted.centres, centre_pool);
}

void DeviceCache::Impl::reserve(int slot, std::int64_t length) {
    check_slot(slot);
    if (length < 0) check_count("length", length, 0, config.max_tokens);
    if (length > config.max_tokens)
        throw OutOfPages("cuda cache: " + std::to_string(length) +
                         " tokens asked of one sequence; the cache was made for max_tokens = " +
                         std::to_string(config.max_tokens) + "; make it for more");
    std::vector<Groups> wanted;
    for (int layer = 0; layer < config.layers; ++layer) wanted.push_back(groups_for(layer, length));
    grow(slot, wanted);
}

void DeviceCache::Impl::grow(int slot, std::span<const Groups> wanted) {
    std::vector<Groups> lacks;
    Groups all;
    for (int layer = 0; layer < config.layers; ++layer) {
        lacks.push_back(lack(layer, slot, wanted[static_cast<std::size_t>(layer)]));
        all.quantized += lacks.back().quantized;
        all.f16 += lacks.back().f16;
        all.centres += lacks.back().centres;
    }
    if (all.quantized + all.f16 + all.centres == 0) return;
    check_free(all);
    const DeviceScope scope(device);
    std::vector<SlotState> grown = read_states(slot);
    for (int layer = 0; layer < config.layers; ++layer) {
        const Groups& of_layer = lacks[static_cast<std::size_t>(layer)];
        SlotPages& own = slot_pages[index(layer, slot)];
        extend(own.recent, f16_pool, of_layer.f16);
        extend(own.quantized, quantized_pool, of_layer.quantized);
        extend(own.epochs, centre_pool, of_layer.centres);
        SlotState& state = grown[static_cast<std::size_t>(layer)];
        state.quantized_capacity = static_cast<std::int64_t>(own.quantized.host.size());
        if (pools_recent(layer))
            state.recent_capacity = static_cast<std::int64_t>(own.recent.host.size());
    }
    const auto slots = static_cast<std::size_t>(config.max_sequences);
    check(cudaMemcpy2D(states + slot, sizeof(SlotState) * slots, grown.data(), sizeof(SlotState),
                       sizeof(SlotState), rules.size(), cudaMemcpyHostToDevice),
          "writing a slot");
    finish_writes();
}

namespace {

void check_rows(const CallArguments& arguments, const DeviceRows& rows, const std::string& name,
                int slots, int tokens, int heads, int head_dim) {
    arguments.check_type(rows.type, name + "'s type");
    arguments.check_pointer(rows.data, name, element_bytes(rows.type));
    arguments.check_stride(rows.token_stride, tokens, head_dim, name + "'s token_stride");
    arguments.check_stride(rows.head_stride, heads, head_dim, name + "'s head_stride");
    arguments.check_stride(rows.slot_stride, slots, head_dim, name + "'s slot_stride");
}

} // namespace

void DeviceCache::Impl::append(const DeviceAppend& append) const {
    check_layer(append.layer);
    check_count("max_tokens", append.max_tokens, 1, config.max_append);
    const CallArguments arguments("cuda cache", device);
    const int head_dim = config.format.head_dim;
    check_count("first_slot", append.first_slot, 0, config.max_sequences - 1);
    const int rest = config.max_sequences - append.first_slot;
    check_count("slots", append.slots, 0, rest);
    const int slots = append.slots == 0 ? rest : append.slots;
    check_rows(arguments, append.k, "k", slots, append.max_tokens, config.kv_heads, head_dim);
    check_rows(arguments, append.v, "v", slots, append.max_tokens, config.kv_heads, head_dim);
    if (append.q.data != nullptr) {
        check_rows(arguments, append.q, "q", slots, append.max_tokens, append.q_heads, head_dim);
        if (append.q_heads < 1 || append.q_heads % config.kv_heads != 0)
            throw InvalidArgument("cuda cache: " + std::to_string(append.q_heads) +
                                  " query heads for " + std::to_string(config.kv_heads) +
                                  " KV heads; queries come from a multiple of them");
    }
    if (append.tokens != nullptr)
        arguments.check_pointer(append.tokens, "tokens", sizeof(std::int32_t));
    arguments.check_stream(append.stream);
    const DeviceScope scope(device);
    AppendParams launch{};
    launch.layer = params[static_cast<std::size_t>(append.layer)];
    launch.layer.slots += append.first_slot;
    launch.layer.sequences += append.first_slot;
    launch.layer.faults += append.first_slot;
    launch.layer.arrivals += append.first_slot;
    launch.k = append.k;
    launch.v = append.v;
    launch.q = append.q;
    launch.q_heads = append.q_heads;
    launch.max_tokens = append.max_tokens;
    launch.tokens = append.tokens;
    launch.row_blocks = static_cast<int>(divide_up(append.max_tokens, kPageTokens));
    launch.page_blocks = launch.layer.rule.quantizes ? launch.row_blocks : 0;
    launch.query_blocks = launch.layer.rule.balances && append.q.data != nullptr ? 1 : 0;
    const auto heads = static_cast<unsigned>(config.kv_heads);
    const auto blocks =
        static_cast<unsigned>(2 * launch.page_blocks + launch.row_blocks + launch.query_blocks);
    const AppendKernels kernels = append_kernels();
    void* kernel_arguments[] = {&launch};
    const auto run = [&](const void* kernel, dim3 grid) {
        check(cudaLaunchKernel(kernel, grid, dim3(static_cast<unsigned>(kernels.threads)),
                               kernel_arguments, 0, append.stream),
              "launching an append");
    };
    const auto count = static_cast<unsigned>(slots);
    if (launch.row_blocks == 1) {
        run(kernels.step, dim3(1, heads, count));
        return;
    }
    if (launch.layer.rule.quantizes) run(kernels.settle, dim3(heads, count));
    run(kernels.append, dim3(blocks, heads, count));
}

namespace {

/// The extent cut at `length`, or a message why not.
std::string cut(const paging::LayerRule& rule, const SlotState& fresh, std::int64_t length,
                SlotState& state) {
    paging::LayerExtent& extent = state.extent;
    if (extent.length <= length) return "";
    if (length == 0) {
        extent = fresh.extent;
    } else if (length < extent.recent_first && extent.recent_first > rule.sink_tokens) {
        return "its tokens from " + std::to_string(extent.recent_first) + " on are in fp16";
    } else if (extent.dropped > 0 &&
               std::max<std::int64_t>(0, length - rule.sliding_window + 1) < extent.dropped) {
        return "its window has dropped the tokens before " + std::to_string(extent.dropped);
    } else {
        extent.length = length;
    }
    if (length <= rule.sink_tokens) state.has_queries = 0;
    state.queries_from = -1;
    return "";
}

} // namespace

std::vector<Fault> DeviceCache::Impl::read_faults() const {
    const DeviceScope scope(device);
    synchronize();
    std::vector<Fault> found(static_cast<std::size_t>(config.max_sequences));
    check(cudaMemcpy(found.data(), faults, found.size() * sizeof(Fault), cudaMemcpyDeviceToHost),
          "reading what appends refused");
    return found;
}

void DeviceCache::Impl::write_fault(int slot, const Fault& fault) const {
    const DeviceScope scope(device);
    check(cudaMemcpy(faults + slot, &fault, sizeof(Fault), cudaMemcpyHostToDevice),
          "writing what an append refused");
    finish_writes();
}

void DeviceCache::Impl::check_told(int slot) const {
    if (read_faults()[static_cast<std::size_t>(slot)].kind != FaultKind::none)
        throw InvalidArgument("cuda cache: an append to slot " + std::to_string(slot) +
                              " was refused; verify() tells what before the slot can be forked");
}

bool DeviceCache::Impl::level(int slot) const {
    std::vector<SlotState> cut_states = read_states(slot);
    std::int64_t shortest = std::numeric_limits<std::int64_t>::max();
    for (const SlotState& state : cut_states) shortest = std::min(shortest, state.extent.length);
    for (int layer = 0; layer < config.layers; ++layer) {
        SlotState& state = cut_states[static_cast<std::size_t>(layer)];
        if (state.extent.length == shortest) continue;
        // Pages may be a fork's too: truncate() has others taken.
        if (shortest == 0 && state.extent.quantized_pages() > 0) return false;
        const paging::LayerRule& rule = rules[static_cast<std::size_t>(layer)];
        const bool sums = state.has_queries != 0 && state.calibrated == 0;
        // Two appends of queries or more: the sums before them are gone.
        if (sums && state.queries_from > shortest && shortest > rule.sink_tokens) return false;
        if (sums && state.queries_from == shortest) {
            state.query_buffer = 1 - state.query_buffer; // without those of the tokens that go
            state.has_queries = state.had_queries;
        }
        if (!cut(rule, fresh_states[index(layer, slot)], shortest, state).empty()) return false;
    }
    write_states(slot, cut_states);
    return true;
}

namespace {

[[noreturn]] void throw_fault(int slot, const Fault& fault, const std::string& advice) {
    const std::string what = "cuda cache: an append to slot " + std::to_string(slot) + ", layer " +
                             std::to_string(fault.layer) + ", ";
    if (fault.kind == FaultKind::pages)
        throw OutOfPages(what + "at token " + std::to_string(fault.position) +
                         " had no pages; reserve() them before" + advice);
    if (fault.kind == FaultKind::window)
        throw OutOfPages(what + std::to_string(fault.rows) + " tokens at token " +
                         std::to_string(fault.position) +
                         ", found the slot's window of fp16 pages full; append fewer at a time" +
                         advice);
    if (fault.kind == FaultKind::tokens)
        throw InvalidArgument(what + "brought " + std::to_string(fault.rows) + " tokens at token " +
                              std::to_string(fault.position) + "; supported are 0 to max_tokens, " +
                              std::to_string(static_cast<int>(fault.value)) + advice);
    constexpr const char* kRows[] = {"K", "V", "Q"};
    throw InvalidArgument(what + kRows[fault.rows] + " of token " + std::to_string(fault.position) +
                          ", head " + std::to_string(fault.head) + ", channel " +
                          std::to_string(fault.channel) + " is " + std::to_string(fault.value) +
                          "; values must be finite and within fp16 (65504)" + advice);
}

} // namespace

void DeviceCache::Impl::check_faults() {
    const std::vector<Fault> found = read_faults();
    const auto find = [&](bool told) {
        return std::find_if(found.begin(), found.end(), [&](const Fault& fault) {
            return fault.kind != FaultKind::none && (fault.kind == FaultKind::lengths) == told;
        });
    };
    // A slot that stays refused does not keep others from being told.
    auto first = find(false);
    if (first == found.end()) first = find(true);
    if (first == found.end()) return;
    const auto slot = static_cast<int>(first - found.begin());
    const std::string uneven = "the layers of slot " + std::to_string(slot) +
                               " have different lengths, and one cannot go back to the shortest: "
                               "truncate the slot to 0, or remove it; until then it takes nothing";
    if (first->kind == FaultKind::lengths) throw InvalidArgument("cuda cache: " + uneven);
    const bool levelled = level(slot);
    Fault left{};
    if (!levelled) left.kind = FaultKind::lengths;
    write_fault(slot, left);
    throw_fault(slot, *first, levelled ? "" : "; " + uneven);
}

std::vector<SlotState> DeviceCache::Impl::truncated(int slot, std::int64_t length) const {
    check_slot(slot);
    check_count("length", length, 0, config.max_tokens);
    std::vector<SlotState> states_now = read_states(slot);
    for (int layer = 0; layer < config.layers; ++layer) {
        const auto at = static_cast<std::size_t>(layer);
        const std::string reason =
            cut(rules[at], fresh_states[index(layer, slot)], length, states_now[at]);
        if (!reason.empty())
            throw InvalidArgument("cuda cache: truncate to " + std::to_string(length) +
                                  " tokens: layer " + std::to_string(layer) + " cannot, " + reason +
                                  "; truncate to 0 and append the tokens again");
    }
    return states_now;
}

void DeviceCache::Impl::truncate(std::span<const int> slots,
                                 std::span<const std::int64_t> lengths) {
    check_count("lengths' size", static_cast<std::int64_t>(lengths.size()),
                static_cast<std::int64_t>(slots.size()), static_cast<std::int64_t>(slots.size()));
    std::vector<std::vector<SlotState>> cut_states;
    std::vector<int> emptied;
    for (std::size_t i = 0; i < slots.size(); ++i) {
        if (std::find(slots.begin(), slots.begin() + static_cast<std::ptrdiff_t>(i), slots[i]) !=
            slots.begin() + static_cast<std::ptrdiff_t>(i))
            throw InvalidArgument("cuda cache: truncate: slot " + std::to_string(slots[i]) +
                                  " is named twice; name each once");
        cut_states.push_back(truncated(slots[i], lengths[i]));
        if (lengths[i] == 0) emptied.push_back(slots[i]);
    }
    check_free(shared_lack(emptied));
    for (const int slot : emptied) replace_shared(slot);
    const std::vector<Fault> told = read_faults();
    for (std::size_t i = 0; i < slots.size(); ++i) {
        write_states(slots[i], cut_states[i]);
        const bool even =
            std::all_of(cut_states[i].begin(), cut_states[i].end(), [&](const SlotState& state) {
                return state.extent.length == cut_states[i][0].extent.length;
            });
        if (even && told[static_cast<std::size_t>(slots[i])].kind == FaultKind::lengths)
            write_fault(slots[i], {});
    }
}

CacheUsage DeviceCache::Impl::usage() const {
    CacheUsage result;
    result.bytes_reserved = memory.bytes();
    const std::vector<SlotState> now = read_all_states();
    for (int slot = 0; slot < config.max_sequences; ++slot) {
        if (!in_use[static_cast<std::size_t>(slot)]) continue;
        for (int layer = 0; layer < config.layers; ++layer) {
            const paging::LayerRule& rule = rules[static_cast<std::size_t>(layer)];
            const paging::LayerExtent& extent = now[index(layer, slot)].extent;
            result.quantized_pages += extent.quantized_pages();
            result.f16_pages += rule.sink_pages(extent.length) - rule.dropped_sink_pages(extent) +
                                rule.grid_pages(extent.length) -
                                rule.grid_page(extent.recent_first);
            result.bytes_in_use += paging::layer_transform_bytes(config) +
                                   static_cast<std::size_t>(rule.epochs(extent).count()) *
                                       paging::centre_group_bytes(config);
        }
    }
    const auto bytes = [](std::int64_t pages, std::size_t of_each) {
        return static_cast<std::size_t>(pages) * of_each;
    };
    result.bytes_in_use += bytes(result.quantized_pages, paging::quantized_group_bytes(config)) +
                           bytes(result.f16_pages, paging::f16_group_bytes(config));
    return result;
}

DeviceCache::DeviceCache(const CacheConfig& config, int device)
    : impl_(std::make_unique<Impl>(config, device)) {}
std::size_t DeviceCache::plan(const CacheConfig& config) { return Impl(config).place(nullptr); }
DeviceCache::~DeviceCache() = default;
DeviceCache::DeviceCache(DeviceCache&&) noexcept = default;
DeviceCache& DeviceCache::operator=(DeviceCache&&) noexcept = default;

const CacheConfig& DeviceCache::config() const { return impl_->config; }
int DeviceCache::create() { return impl_->create(); }
int DeviceCache::fork(int slot) { return impl_->fork(slot); }
void DeviceCache::reorder(std::span<const int> sources) { impl_->reorder(sources); }
void DeviceCache::remove(int slot) { impl_->remove(slot); }
void DeviceCache::reserve(int slot, std::int64_t length) { impl_->reserve(slot, length); }
void DeviceCache::append(const DeviceAppend& append) { impl_->append(append); }
void DeviceCache::verify() { impl_->check_faults(); }
void DeviceCache::truncate(int slot, std::int64_t length) {
    impl_->truncate({&slot, 1}, {&length, 1});
}
void DeviceCache::truncate(std::span<const int> slots, std::span<const std::int64_t> lengths) {
    impl_->truncate(slots, lengths);
}

std::int64_t DeviceCache::length(int slot, int layer) const {
    impl_->check_slot(slot);
    impl_->check_layer(layer);
    return impl_->read_states(slot)[static_cast<std::size_t>(layer)].extent.length;
}

const Sequence* DeviceCache::sequences(int layer) const {
    impl_->check_layer(layer);
    return impl_->params[static_cast<std::size_t>(layer)].sequences;
}

CacheUsage DeviceCache::usage() const { return impl_->usage(); }
std::size_t DeviceCache::bytes() const { return impl_->memory.bytes(); }

} // namespace innerkv::cuda
