#include "examples/model/operations.hpp"

#include <algorithm>

#include "backends/built.hpp"
#include "cpnsa/error.hpp"

namespace model {

void* Operations::allocate(std::size_t bytes) {
  void* memory = allocate_on_device(bytes);
  used_bytes_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, used_bytes_);
  return memory;
}

void Operations::release(void* pointer, std::size_t bytes) noexcept {
  release_on_device(pointer);
  used_bytes_ -= bytes;
}

std::unique_ptr<Operations> make_operations(cpnsa::Device& device, DType dtype) {
  if (device.name() != "cuda") return make_cpu_operations(device, dtype);
  if constexpr (cpnsa::backends::has_cuda) return make_cuda_operations(device, dtype);
  throw cpnsa::UnsupportedError("found a CUDA device, expected the CPU's: this build has no CUDA (CPNSA_CUDA is OFF)");
}

}  // namespace model
