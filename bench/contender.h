// SPDX-License-Identifier: Apache-2.0
// What is measured: one step's attention on a filled cache, ours or a peer's.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attention_case.h"
#include "thread_pool.h"

namespace innerkv::bench {

class Contender {
public:
    virtual ~Contender() = default;

    virtual std::string name() const = 0; ///< "innerkv:base", "innerkv:base:shared", "ggml:q8_0"
    /// Whether its sequences are forks of one prompt, which see other tokens than separate ones do.
    virtual bool forks() const { return false; }
    /// Bytes of keys and values, scales counted, that a run has to read.
    virtual std::size_t bytes_read() const = 0;
    /// Wakes threads; not timed.
    virtual void wake() {}
    /// Timed.
    virtual void run() = 0;
    /// Puts threads to sleep, so that the next contender has the cores; not timed.
    virtual void rest() {}
    /// Of the last run, [batch, tokens, q_heads, head_dim].
    virtual std::span<const float> output() const = 0;

    /// Microseconds that appending the tokens of a page to one sequence takes, a page being quantized for it:
    /// the least of several. -1: not known.
    virtual double append_us() { return -1; }

    /// The right answer on what this contender's cache holds after rounding, for a sequence's judged tokens,
    /// [judged, q_heads, head_dim]: what its arithmetic is judged by. Empty: not known.
    virtual std::vector<float> expected_output(int /*sequence*/) const { return {}; }
    /// Rows of queries that meet a key-value head's pages, which are multiplied as integers; 0: they are not, and its
    /// floor is what it reads.
    virtual int integer_rows() const { return 0; }
};

/// Called before each chunk of tokens that a cache is filled with; may throw.
using Checkpoint = std::function<void()>;

/// Ours: a cache filled through append and settled, one attention call over it.
/// `isa` empty: the best there is. Throws InvalidArgument.
std::unique_ptr<Contender> make_innerkv_contender(
    const AttentionCase& attention, std::string_view preset, std::string_view isa, ThreadPool& pool,
    const Checkpoint& checkpoint = [] {});

/// Bytes that its cache, queries and outputs take, known before anything is allocated. Throws InvalidArgument.
std::size_t innerkv_contender_bytes(const AttentionCase& attention, std::string_view preset);

/// Names of all rivals, "ggml:f16", ...
std::vector<std::string> peer_names();
/// Throws InvalidArgument listing the rivals unless `name` is one.
void require_peer(std::string_view name);
/// A rival by name; throws InvalidArgument where there is none or it does not support the case.
std::unique_ptr<Contender> make_peer(
    const AttentionCase& attention, std::string_view name, int threads,
    const Checkpoint& checkpoint = [] {});
/// Bytes of its keys, values and mask, queries and outputs, likewise.
std::size_t peer_bytes(const AttentionCase& attention, std::string_view name);

} // namespace innerkv::bench
