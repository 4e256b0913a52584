// SPDX-License-Identifier: Apache-2.0
#include "cache/append.h"

#include <algorithm>
#include <memory>
#include <string>

#include "cache/calibrate.h"
#include "cache/settle.h"
#include "innerkv/error.h"

namespace innerkv::paging {
namespace {

/// `rows` and `heads` name what the value was found in.
[[noreturn]] void refuse_value(const SequenceAppend& append, int layer, const char* rows,
                               const char* heads, const BadValue& bad) {
    throw InvalidArgument(std::string("append: ") + rows + " of sequence " +
                          std::to_string(static_cast<std::int32_t>(append.rows.sequence)) +
                          ", layer " + std::to_string(layer) + ", token " +
                          std::to_string(append.state->length + bad.token) + ", " + heads +
                          " head " + std::to_string(bad.head) + ", channel " +
                          std::to_string(bad.channel) + " is " + std::to_string(bad.value) +
                          "; values must be finite and within fp16 (65504)");
}

} // namespace

LayerAppend::LayerAppend(CacheState& cache, int layer, std::span<const AppendRows> batch)
    : cache_(cache), layer_(layer), rule_(cache.rule(layer)),
      format_(cache.config.layer_format(layer)), done_(static_cast<std::size_t>(parts()), 0) {
    check_batch(batch);
    appends_.reserve(batch.size());
    for (const AppendRows& rows : batch) plan(rows, cache_.sequence(rows.sequence).settles);
    take_pages("an append to layer " + std::to_string(layer));
}

LayerAppend::LayerAppend(CacheState& cache, int layer, SequenceId sequence)
    : cache_(cache), layer_(layer), rule_(cache.rule(layer)),
      format_(cache.config.layer_format(layer)), done_(static_cast<std::size_t>(parts()), 0) {
    AppendRows nothing;
    nothing.sequence = sequence;
    plan(nothing, true);
    take_pages("settling layer " + std::to_string(layer));
}

LayerAppend::~LayerAppend() {
    if (pending_) --cache_.pending[static_cast<std::size_t>(layer_)];
}

void LayerAppend::check_batch(std::span<const AppendRows> batch) const {
    if (cache_.pending[static_cast<std::size_t>(layer_)] != 0)
        throw InvalidArgument("append: layer " + std::to_string(layer_) +
                              " already has an append under way; commit or drop it first");
    for (std::size_t i = 0; i < batch.size(); ++i) {
        const AppendRows& rows = batch[i];
        cache_.sequence(rows.sequence);
        if (rows.tokens < 0)
            throw InvalidArgument("append: " + std::to_string(rows.tokens) +
                                  " tokens; the count must not be negative");
        check_rows(rows.k, "K", rows.tokens, parts(), cache_.config.format.head_dim);
        check_rows(rows.v, "V", rows.tokens, parts(), cache_.config.format.head_dim);
        check_queries(rows);
        for (const AppendRows& earlier : batch.first(i))
            if (earlier.sequence == rows.sequence)
                throw InvalidArgument("append: sequence " +
                                      std::to_string(static_cast<std::int32_t>(rows.sequence)) +
                                      " is in the batch twice; join its rows into one entry");
    }
}

void LayerAppend::check_queries(const AppendRows& rows) const {
    if (!rows.q.data) return;
    if (rows.q_heads < 1 || rows.q_heads % parts() != 0)
        throw InvalidArgument("append: " + std::to_string(rows.q_heads) + " query heads for " +
                              std::to_string(parts()) +
                              " KV heads; queries come from a multiple of them");
    check_rows(rows.q, "Q", rows.tokens, rows.q_heads, cache_.config.format.head_dim);
}

void LayerAppend::plan(const AppendRows& rows, bool settles) {
    SequenceState& sequence = cache_.sequence(rows.sequence);
    SequenceAppend append(cache_, layer_, rows, sequence.layers[static_cast<std::size_t>(layer_)]);
    const LayerState& state = *append.state;
    if (settles) append.settle = plan_settle(rule_, state, state.transform != nullptr);
    const std::int64_t end = state.length + rows.tokens;
    append.new_sink_pages = rule_.sink_pages(end) - rule_.sink_pages(state.length);
    append.new_recent_pages = rule_.grid_pages(end) - rule_.grid_pages(state.length);
    if (rule_.balances && rows.q.data && !state.transform) {
        const std::int64_t first = std::max<std::int64_t>(rule_.sink_tokens, state.length);
        const std::int64_t last =
            std::min<std::int64_t>(rule_.sink_tokens + rule_.calibration_tokens, end);
        append.first_query = static_cast<int>(first - state.length);
        append.queries = static_cast<int>(std::max<std::int64_t>(0, last - first));
    }
    const int partial = state.partial_rows(rule_);
    if (rows.tokens > 0 && partial > 0) {
        const PageList& list = state.last_list(rule_);
        if (cache_.f16_pool.shared(list.id(list.size() - 1))) append.copied_rows = partial;
    }
    appends_.push_back(std::move(append));
}

void LayerAppend::take_pages(const std::string& what) {
    std::int64_t quantized_needed = 0;
    std::int64_t f16_needed = 0;
    std::int64_t centres_needed = 0;
    const auto f16_pages = [](const SequenceAppend& append) {
        return append.new_sink_pages + append.new_recent_pages + (append.copied_rows > 0 ? 1 : 0);
    };
    for (const SequenceAppend& append : appends_) {
        quantized_needed += append.settle.quantize;
        f16_needed += f16_pages(append);
        centres_needed += append.settle.new_epochs.count();
    }
    check_free(what, kQuantizedPages, cache_.quantized_pool(layer_), quantized_needed);
    check_free(what, kF16Pages, cache_.f16_pool, f16_needed);
    check_free(what, kCentres, cache_.centre_pool, centres_needed);
    for (SequenceAppend& append : appends_) {
        append.quantized_pages.take(append.settle.quantize);
        append.f16_pages.take(f16_pages(append));
        append.centres.take(append.settle.new_epochs.count());
        prepare(append);
    }
    ++cache_.pending[static_cast<std::size_t>(layer_)];
    pending_ = true;
}

/// Everything that allocates or looks at the pools, so that run() and commit() need not.
void LayerAppend::prepare(SequenceAppend& append) {
    append.state->quantized.reserve(append.settle.quantize);
    append.state->centres.reserve(append.settle.new_epochs.count());
    append.state->sink.reserve(append.new_sink_pages);
    append.state->recent.reserve(append.new_recent_pages);
    if (append.settle.calibrate) append.calibration = make_layer_transform(cache_.config);
    if (append.queries > 0)
        append.query_power =
            std::make_shared<QueryPower>(query_power_bytes(cache_.config) / sizeof(float));
    place_rows(append);
}

void LayerAppend::place_rows(SequenceAppend& append) const {
    const std::span<const Page> fresh = append.f16_pages.pages();
    std::size_t next = 0;
    std::byte* partial = nullptr;
    if (append.copied_rows > 0) {
        partial = fresh[next++].data;
    } else if (append.state->partial_rows(rule_) > 0 && append.rows.tokens > 0) {
        const PageList& list = append.state->last_list(rule_);
        partial = cache_.f16_pool.data(list.id(list.size() - 1));
    }
    for (int token = 0; token < append.rows.tokens;) {
        const std::int64_t position = append.state->length + token;
        const bool in_sink = position < rule_.sink_tokens;
        PageWrite write;
        write.first_token = token;
        write.first_row =
            static_cast<int>((in_sink ? position : position - rule_.sink_tokens) % kPageTokens);
        write.tokens = std::min(kPageTokens - write.first_row, append.rows.tokens - token);
        if (in_sink)
            write.tokens = std::min(write.tokens, static_cast<int>(rule_.sink_tokens - position));
        write.page = write.first_row > 0 ? partial : fresh[next++].data;
        append.writes.push_back(write);
        token += write.tokens;
    }
}

void LayerAppend::run(int part) {
    if (part < 0 || part >= parts())
        throw InvalidArgument("append: part " + std::to_string(part) +
                              " does not exist; there are " + std::to_string(parts()) +
                              ", one per KV head");
    if (!pending_) throw InvalidArgument("append: run after commit; begin another append");
    for (const SequenceAppend& append : appends_) {
        settle_head(append, part);
        store_head(append, part);
    }
    done_[static_cast<std::size_t>(part)] = 1;
}

void LayerAppend::settle_head(const SequenceAppend& append, int head) const {
    const LayerState& state = *append.state;
    const auto f16_offset =
        static_cast<std::size_t>(head) * f16_format(cache_.config.format.head_dim).page_bytes();
    const auto index = static_cast<std::size_t>(head);
    const std::size_t offset = index * cache_.quantized_pool(layer_).part_stride();
    if (append.calibration)
        calibrate_head(cache_.config, state.recent.pointers(), f16_offset,
                       state.queries ? state.queries->data() + query_offset(head) : nullptr,
                       append.calibration->heads[index]);
    make_centres(append, head);
    const std::span<const KeyTransform> transforms =
        append.calibration ? append.calibration->heads : cache_.transforms(layer_, state);
    const std::int64_t recent_first = rule_.grid_page(state.recent_first);
    std::int64_t source = append.settle.drop_recent;
    for (const Page& page : append.quantized_pages.pages()) {
        const PageTransform transform =
            page_transform(format_, transforms, centres_of(append, recent_first + source), index);
        quantize_f16_page(format_, transform,
                          state.recent.pointers()[static_cast<std::size_t>(source)] + f16_offset,
                          page.data + offset);
        ++source;
    }
}

/// Of epochs whose first page leaves the recent window: with the pages behind it, it is still there.
void LayerAppend::make_centres(const SequenceAppend& append, int head) const {
    const int head_dim = cache_.config.format.head_dim;
    const auto index = static_cast<std::size_t>(head);
    const std::int64_t recent_first = rule_.grid_page(append.state->recent_first);
    std::int64_t first_page = append.settle.new_epochs.first * rule_.epoch_pages - recent_first;
    for (const Page& centre : append.centres.pages()) {
        key_centre(head_dim, rule_.recent_tokens + kPageTokens,
                   append.state->recent.pointers().subspan(static_cast<std::size_t>(first_page)),
                   index * f16_format(head_dim).page_bytes(),
                   centre.data + index * f16_row_bytes(head_dim));
        first_page += rule_.epoch_pages;
    }
}

/// The centres of a page's epoch: new ones, or those that are there.
const std::byte* LayerAppend::centres_of(const SequenceAppend& append,
                                         std::int64_t grid_page) const {
    if (rule_.epoch_pages == 0) return nullptr;
    const std::int64_t epoch = grid_page / rule_.epoch_pages;
    const EpochRange& fresh = append.settle.new_epochs;
    if (epoch >= fresh.first)
        return append.centres.pages()[static_cast<std::size_t>(epoch - fresh.first)].data;
    const LayerState& state = *append.state;
    return state.centres.pointers()[static_cast<std::size_t>(epoch - rule_.epochs(state).first)];
}

void LayerAppend::store_head(const SequenceAppend& append, int head) const {
    const int head_dim = cache_.config.format.head_dim;
    const auto offset = static_cast<std::size_t>(head) * f16_format(head_dim).page_bytes();
    if (append.copied_rows > 0)
        copy_rows(head_dim, append.copied_rows,
                  append.state->last_list(rule_).pointers().back() + offset,
                  append.f16_pages.pages().front().data + offset);
    store_side(append, Side::k, head);
    store_side(append, Side::v, head);
    add_queries(append, head);
}

std::ptrdiff_t LayerAppend::query_offset(int head) const {
    return std::ptrdiff_t{head} * cache_.config.format.head_dim;
}

void LayerAppend::add_queries(const SequenceAppend& append, int head) const {
    if (append.queries == 0) return;
    const int head_dim = cache_.config.format.head_dim;
    const int group = append.rows.q_heads / parts();
    float* sums = append.query_power->data() + query_offset(head);
    const std::shared_ptr<const QueryPower>& before = append.state->queries;
    if (before)
        std::copy_n(before->data() + query_offset(head), head_dim, sums);
    else
        std::fill_n(sums, head_dim, 0.0f);
    const std::optional<BadValue> bad = add_squares(append.rows.q, head * group, group, head_dim,
                                                    append.first_query, append.queries, sums);
    if (bad) refuse_value(append, layer_, "Q", "query", *bad);
}

void LayerAppend::store_side(const SequenceAppend& append, Side side, int head) const {
    const int head_dim = cache_.config.format.head_dim;
    const auto offset = static_cast<std::size_t>(head) * f16_format(head_dim).page_bytes();
    const Rows& rows = side == Side::k ? append.rows.k : append.rows.v;
    for (const PageWrite& write : append.writes) {
        const std::optional<BadValue> bad =
            store_rows(rows, head, head_dim, write.first_token, write.tokens, side,
                       write.page + offset, write.first_row);
        if (bad) refuse_value(append, layer_, side == Side::k ? "K" : "V", "KV", *bad);
    }
}

bool LayerAppend::commit() noexcept {
    const bool complete =
        std::all_of(done_.begin(), done_.end(), [](std::uint8_t done) { return done != 0; });
    if (!pending_ || !complete) return false;
    for (SequenceAppend& append : appends_) {
        // Rows first: a partial page is found by the length that settling looked at.
        commit_rows(append);
        commit_settle(append);
    }
    pending_ = false;
    --cache_.pending[static_cast<std::size_t>(layer_)];
    return true;
}

void LayerAppend::finish() {
    for (int part = 0; part < parts(); ++part) run(part);
    static_cast<void>(commit()); // all parts have run
}

void LayerAppend::commit_rows(SequenceAppend& append) noexcept {
    LayerState& state = *append.state;
    std::span<const Page> pages = append.f16_pages.pages();
    if (append.copied_rows > 0) {
        state.last_list(rule_).replace_back(cache_.f16_pool, pages.front());
        pages = pages.subspan(1);
    }
    const auto sink_pages = static_cast<std::size_t>(append.new_sink_pages);
    for (const Page& page : pages.first(sink_pages)) state.sink.push_back(page);
    for (const Page& page : pages.subspan(sink_pages)) state.recent.push_back(page);
    append.f16_pages.keep();
    if (append.query_power) state.queries = std::move(append.query_power);
    state.length += append.rows.tokens;
}

void LayerAppend::commit_settle(SequenceAppend& append) noexcept {
    LayerState& state = *append.state;
    const SettlePlan& settle = append.settle;
    if (append.calibration) {
        state.transform = std::move(append.calibration);
        state.queries.reset();
    }

    static_cast<LayerExtent&>(state) = settled(rule_, state, settle);
    state.sink.release_front(cache_.f16_pool, settle.drop_sink);
    state.quantized.release_front(cache_.quantized_pool(layer_), settle.drop_quantized);
    state.centres.release_front(cache_.centre_pool, settle.drop_centres);
    for (const Page& centre : append.centres.pages()) state.centres.push_back(centre);
    append.centres.keep();
    for (const Page& page : append.quantized_pages.pages()) state.quantized.push_back(page);
    append.quantized_pages.keep();
    state.recent.release_front(cache_.f16_pool, settle.drop_recent + settle.quantize);
}

PoolCapacity CacheState::settle_need(const SequenceState& target) const {
    PoolCapacity held; // what the layers so far took more than they gave back
    PoolCapacity most;
    held.quantized_pages.resize(quantized_pools.size());
    most.quantized_pages.resize(quantized_pools.size());
    for (int layer = 0; layer < config.layers; ++layer) {
        const LayerState& state = target.layers[static_cast<std::size_t>(layer)];
        const SettlePlan settle = plan_settle(rule(layer), state, state.transform != nullptr);
        std::int64_t& quantized = held.quantized_pages[class_of(layer)];
        std::int64_t& most_quantized = most.quantized_pages[class_of(layer)];
        quantized += settle.quantize;
        held.centres += settle.new_epochs.count();
        most_quantized = std::max(most_quantized, quantized);
        most.centres = std::max(most.centres, held.centres);
        quantized -= state.quantized.exclusive(quantized_pool(layer), settle.drop_quantized);
        held.centres -= state.centres.exclusive(centre_pool, settle.drop_centres);
    }
    return most;
}

void CacheState::settle(SequenceId id) {
    check_not_pending("settle");
    SequenceState& target = sequence(id);
    check_free("settling", settle_need(target));
    // Layer by layer: each pool has room for one layer's new pages beside those that it drops for them.
    for (int layer = 0; layer < config.layers; ++layer) LayerAppend(*this, layer, id).finish();
    target.settles = true;
}

} // namespace innerkv::paging
