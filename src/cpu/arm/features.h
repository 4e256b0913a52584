// SPDX-License-Identifier: Apache-2.0
// What the operating system reports of the processor.
#pragma once

namespace innerkv::cpu::arm {

bool has_dot_product(); ///< SDOT and UDOT (FEAT_DotProd)

} // namespace innerkv::cpu::arm
