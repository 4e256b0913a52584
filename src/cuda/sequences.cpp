// SPDX-License-Identifier: Apache-2.0
// Views of the CPU library, copied to a device: everything is laid out in one piece of host memory with pointers that
// will be right there, then sent at once.
#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include "cuda/arguments.h"
#include "cuda/device.h"
#include "cuda/params.h"

namespace innerkv::cuda {
namespace {

static_assert(std::is_trivially_copyable_v<Sequence>);

/// Places in a piece of memory that does not exist yet; then the piece itself.
class Arena {
public:
    /// Offset of `bytes` bytes, aligned as pages are.
    std::size_t take(std::size_t bytes) {
        const std::size_t at = size_;
        size_ = (size_ + bytes + kPageAlignment - 1) / kPageAlignment * kPageAlignment;
        return at;
    }
    std::size_t size() const { return size_; }

    void materialize(std::byte* device) {
        host_.resize(size_);
        device_ = device;
    }
    std::byte* host(std::size_t at) { return host_.data() + at; }
    const std::byte* device(std::size_t at) const { return device_ + at; }
    template <typename T>
    const T* device_as(std::size_t at) const {
        return reinterpret_cast<const T*>(device_ + at);
    }

private:
    std::size_t size_ = 0;
    std::vector<std::byte> host_;
    std::byte* device_ = nullptr;
};

/// Offsets of a sequence's parts in the arena.
struct Places {
    std::size_t pages[3]; ///< sink, quantized, recent
    std::size_t tables[3];
    std::size_t norm = 0;
    std::size_t centre = 0;
    std::size_t value_centre = 0;
    std::size_t centres = 0;
    std::size_t epochs = 0;
};

class Layout {
public:
    Layout(const AttentionShape& shape, std::span<const SequenceQueries> sequences)
        : shape_(shape), sequences_(sequences),
          descriptors_(arena_.take(sizeof(Sequence) * sequences.size())) {
        for (const SequenceQueries& asked : sequences) places_.push_back(place(*asked.sequence));
    }
    std::size_t bytes() const { return arena_.size(); }

    /// Fills the host's piece; returns it.
    const std::byte* fill(std::byte* device) {
        arena_.materialize(device);
        for (std::size_t i = 0; i < sequences_.size(); ++i) {
            const Sequence sequence = fill_sequence(sequences_[i], places_[i]);
            std::memcpy(arena_.host(descriptors_ + i * sizeof sequence), &sequence,
                        sizeof sequence);
        }
        return arena_.host(0);
    }

private:
    std::size_t heads() const { return static_cast<std::size_t>(shape_.kv_heads); }
    std::size_t channels() const {
        return heads() * static_cast<std::size_t>(shape_.format.head_dim);
    }
    std::size_t page_bytes(int run) const {
        const int head_dim = shape_.format.head_dim;
        return run == 1 ? shape_.format.page_bytes()
                        : PageFormat{kF16, kF16, head_dim}.page_bytes();
    }

    Places place(const SequenceView& view) {
        Places places{};
        const PageRun* runs[] = {&view.sink, &view.quantized, &view.recent};
        for (int run = 0; run < 3; ++run) {
            const std::size_t pages = runs[run]->pages.size();
            places.pages[run] = arena_.take(pages * heads() * page_bytes(run));
            places.tables[run] = arena_.take(pages * sizeof(void*));
        }
        places.norm = arena_.take(channels() * sizeof(float));
        places.centre = arena_.take(channels() * sizeof(float));
        places.value_centre = arena_.take(channels() * sizeof(float));
        places.centres =
            arena_.take(view.centres.epochs.size() * channels() * sizeof(std::uint16_t));
        places.epochs = arena_.take(view.centres.epochs.size() * sizeof(void*));
        return places;
    }

    void write_pointer(std::size_t table, std::size_t index, const std::byte* pointer) {
        std::memcpy(arena_.host(table + index * sizeof pointer), &pointer, sizeof pointer);
    }

    Run fill_run(const PageRun& run, std::size_t bytes, std::size_t pages, std::size_t table) {
        for (std::size_t i = 0; i < run.pages.size(); ++i) {
            const std::size_t at = pages + i * heads() * bytes;
            for (std::size_t head = 0; head < heads(); ++head)
                std::memcpy(arena_.host(at + head * bytes), run.pages[i] + head * run.head_stride,
                            bytes);
            write_pointer(table, i, arena_.device(at));
        }
        return {arena_.device_as<const std::byte*>(table), bytes, run.first_token, run.tokens};
    }

    /// [kv_heads, head_dim] from the transforms; null where no head has it, `neutral` where one has none.
    const float* fill_channels(std::span<const KeyTransform> transforms,
                               const float* KeyTransform::*field, float neutral, std::size_t at) {
        const auto dim = static_cast<std::size_t>(shape_.format.head_dim);
        bool any = false;
        std::vector<float> row(dim);
        for (std::size_t head = 0; head < transforms.size(); ++head) {
            const float* from = transforms[head].*field;
            any = any || from != nullptr;
            std::fill(row.begin(), row.end(), neutral);
            if (from != nullptr) std::copy_n(from, dim, row.begin());
            std::memcpy(arena_.host(at + head * dim * sizeof(float)), row.data(),
                        dim * sizeof(float));
        }
        return any ? arena_.device_as<float>(at) : nullptr;
    }

    Sequence fill_sequence(const SequenceQueries& asked, const Places& places) {
        const SequenceView& view = *asked.sequence;
        Sequence sequence;
        sequence.sink = fill_run(view.sink, page_bytes(0), places.pages[0], places.tables[0]);
        sequence.quantized =
            fill_run(view.quantized, page_bytes(1), places.pages[1], places.tables[1]);
        sequence.recent = fill_run(view.recent, page_bytes(2), places.pages[2], places.tables[2]);
        sequence.length = view.length;
        sequence.first_position = asked.first_position;
        sequence.query_tokens = asked.query_tokens;
        sequence.rotate = !view.transforms.empty() && view.transforms[0].rotate ? 1 : 0;
        sequence.norm = fill_channels(view.transforms, &KeyTransform::norm, 1.0f, places.norm);
        sequence.centre =
            fill_channels(view.transforms, &KeyTransform::centre, 0.0f, places.centre);
        sequence.value_centre =
            fill_channels(view.transforms, &KeyTransform::value_centre, 0.0f, places.value_centre);
        for (std::size_t e = 0; e < view.centres.epochs.size(); ++e) {
            const std::size_t bytes = channels() * sizeof(std::uint16_t);
            std::memcpy(arena_.host(places.centres + e * bytes), view.centres.epochs[e], bytes);
            write_pointer(places.epochs, e, arena_.device(places.centres + e * bytes));
        }
        if (!view.centres.epochs.empty()) {
            sequence.epochs = arena_.device_as<const std::byte*>(places.epochs);
            sequence.epoch_pages = view.centres.epoch_pages;
            sequence.first_page = view.centres.first_page;
        }
        return sequence;
    }

    const AttentionShape& shape_;
    std::span<const SequenceQueries> sequences_;
    Arena arena_;
    std::size_t descriptors_;
    std::vector<Places> places_;
};

} // namespace

struct DeviceSequences::Impl {
    DeviceMemory memory;
    int count = 0;
};

DeviceSequences::DeviceSequences(const AttentionShape& shape,
                                 std::span<const SequenceQueries> sequences, int device)
    : impl_(std::make_unique<Impl>()) {
    check_sequences(shape, sequences);
    require_device(device);
    Layout layout(shape, sequences);
    impl_->count = static_cast<int>(sequences.size());
    impl_->memory = DeviceMemory(device, layout.bytes(), "copies of sequences");
    const std::byte* filled = layout.fill(impl_->memory.data());
    const DeviceScope scope(device);
    check(cudaMemcpy(impl_->memory.data(), filled, layout.bytes(), cudaMemcpyHostToDevice),
          "copying sequences to device " + std::to_string(device));
    finish_writes();
}

DeviceSequences::~DeviceSequences() = default;
DeviceSequences::DeviceSequences(DeviceSequences&&) noexcept = default;
DeviceSequences& DeviceSequences::operator=(DeviceSequences&&) noexcept = default;

const Sequence* DeviceSequences::data() const {
    return reinterpret_cast<const Sequence*>(impl_->memory.data());
}
int DeviceSequences::size() const { return impl_->count; }
std::size_t DeviceSequences::bytes() const { return impl_->memory.bytes(); }

} // namespace innerkv::cuda
