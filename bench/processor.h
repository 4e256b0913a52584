// SPDX-License-Identifier: Apache-2.0
// What this processor has and how fast its dot product is.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "dot_loops.h"
#include "read_loops.h"
#include "thread_pool.h"

namespace innerkv::bench {

/// 0 where the system does not say.
std::size_t last_level_cache_bytes();

/// Read loops that this processor runs, widest first.
std::span<const ReadLoop> supported_read_loops();

struct DotInstruction {
    std::string_view isa;  ///< of the library: available_isas()
    std::string_view name; ///< for people
    DotLoop loop;
    int least_rows = 1; ///< it is used for so many rows of a KV head, or more
};

/// The one that the kernel of an instruction set uses for `rows` rows of a KV head; throws InvalidArgument
/// for one that the bench does not know.
const DotInstruction& dot_instruction(std::string_view isa, int rows);

/// int8 multiply-accumulates per second of all threads together.
double dot_rate(ThreadPool& pool, const DotInstruction& instruction);

} // namespace innerkv::bench
