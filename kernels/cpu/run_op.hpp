#pragma once

#include "cpnsa/ops.hpp"

namespace cpnsa::cpu {

/// Runs an op on the calling thread. Declared for every op; each op's specialization is defined in the file that has
/// its name, so a missing one is an error of the linker.
template <class Op>
void run_op(const Op& op);

}  // namespace cpnsa::cpu
