// SPDX-License-Identifier: Apache-2.0
// Which strips of a call see the same pages: forks of one prompt read what they share together.
#pragma once

#include <span>
#include <vector>

#include "attention/strip.h"

namespace innerkv {

/// Pages that several strips all see and hold, or those that one sees alone.
struct Stretch {
    PageShare pages;  ///< of the first member's sequence; the other members' have the same ones
    int first_member; ///< in Stretches::members
    int members;
};

struct Stretches {
    std::vector<Stretch> list; ///< a strip's follow each other in the order of tokens
    std::vector<int> members;  ///< strips
};

/// Every page of every strip lies in just one stretch; a strip that sees none is in an empty one. Pages
/// are the same where their memory, their tokens and what they went through on their way in are: key
/// transform and centre. Stretches of several strips cost kSmallestItem or more.
Stretches find_stretches(std::span<const QueryBlock> blocks, std::span<const Strip> strips);

} // namespace innerkv
