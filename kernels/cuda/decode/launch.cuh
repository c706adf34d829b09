#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpnsa/config.hpp"
#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/gpu.hpp"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/ptx/sm80.cuh"

namespace cpnsa::cuda::decode {

/// The grid and the stream of a launch.
struct Launch {
  const Gpu& gpu;
  cudaStream_t stream;
  dim3 blocks;
  int threads;
  std::size_t shared_bytes = 0;
};

/// A kernel's own shared memory, which counts towards the default limit too; at most.
inline constexpr std::size_t max_static_bytes = 8 * 1024;

/// Enqueues kernel(arguments...). The kernel may begin while the one before it in the stream ends (programmatic
/// dependent launch), so it calls ptx::wait_for_previous_grid() before it touches memory, in every thread block.
template <class... Parameters, class... Arguments>
void launch(const char* name, const Launch& where, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (where.blocks.x == 0) return;
  allow_shared_memory(kernel, where.shared_bytes + max_static_bytes);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config{where.blocks,       dim3(static_cast<unsigned>(where.threads)),
                                  where.shared_bytes, where.stream,
                                  &attribute,         where.gpu.capability >= 90 ? 1u : 0u};
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

/// The softmax scale times log2(e).
inline float scale_log2(const Config& config) {
  return static_cast<float>(config.scale() * 1.44269504088896340736);
}

/// Blocks of a persistent grid: for `items` at most, `per_multiprocessor` of them resident.
inline dim3 persistent_blocks(const Gpu& gpu, std::int64_t items, int per_multiprocessor) {
  return dim3(
      static_cast<unsigned>(std::min<std::int64_t>(items, std::int64_t{gpu.multiprocessors} * per_multiprocessor)));
}

/// Returns whether this thread block is the last of `count` that arrive at a counter, which is then 0 again. What the
/// others wrote to global memory before they arrived is visible to the last. Every thread of the block calls it.
__device__ __forceinline__ bool arrive_last(unsigned* counter, int count) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(counter, 1u) + 1 == static_cast<unsigned>(count);
    if (is_last) *counter = 0;
  }
  __syncthreads();
  const bool last = is_last;
  if (last) __threadfence();
  __syncthreads();  // before is_last is written again
  return last;
}

}  // namespace cpnsa::cuda::decode
