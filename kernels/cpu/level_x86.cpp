// Compiled for any x86 CPU, unlike the kernels.
#include <fmt/format.h>

#include <string_view>

#include "cpnsa/error.hpp"
#include "cpnsa/info.hpp"
#include "kernels/cpu/level.hpp"

namespace cpnsa::cpu {

void check_level() {
  const std::string_view level = build_info().cpu_arch;
  bool runs = true;
  if (level == "x86-64-v2") runs = __builtin_cpu_supports("sse4.2");
  if (level == "x86-64-v3")
    runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (level == "x86-64-v4") runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  if (!runs)
    throw UnsupportedError(fmt::format(
        "cpu device: found a CPU that does not have the instructions of {}, expected one that has: this library was "
        "built with CPNSA_CPU_ARCH={}",
        level, level));
}

}  // namespace cpnsa::cpu
