#pragma once

namespace cpnsa::cuda {

/// The properties of a GPU that kernels are chosen and launched by, queried once, when the device is made.
struct Gpu {
  int capability = 0;       ///< compute capability, 10 * major + minor
  int multiprocessors = 0;  ///< grid size of persistent kernels

  bool is_hopper() const { return capability / 10 == 9; }
};

}  // namespace cpnsa::cuda
