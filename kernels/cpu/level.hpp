#pragma once

namespace cpnsa::cpu {

/// Throws UnsupportedError if this CPU lacks instructions of the one that the CPU device was compiled for. Known are
/// the levels x86-64-v2, v3 and v4; other values of CPNSA_CPU_ARCH pass.
void check_level();

}  // namespace cpnsa::cpu
