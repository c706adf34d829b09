#include "kernels/cuda/sm90/stages.hpp"

#include "kernels/cuda/common/check.hpp"

namespace cpnsa::cuda::sm90 {
namespace {

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

int multiprocessors() {
  return attribute(cudaDevAttrMultiProcessorCount);
}

bool serves_attention(const Config& config) {
  const std::int64_t dk = config.head_dim_qk, dv = config.head_dim_v;
  const bool dims = (dk == 64 && dv == 64) || (dk == 128 && dv == 128) || (dk == 192 && dv == 128);
  // Maxima are taken before scores are scaled, which a negative scale would turn round.
  return dims && config.heads_per_group() == 16 && config.scale() > 0 &&
         attribute(cudaDevAttrComputeCapabilityMajor) == 9;
}

bool serves_selection(const Config& config) {
  return serves_attention(config) && config.compress_block == 32 && config.compress_stride == 16 &&
         config.select_block == 64 && config.select_count - config.init_blocks - config.local_blocks <= 32;
}

}  // namespace cpnsa::cuda::sm90
