#include <fmt/format.h>

#include <vector>

#include "cpnsa/cuda/device.hpp"
#include "cpnsa/error.hpp"
#include "kernels/cuda/sm90/run_op.hpp"
#include "kernels/cuda/sm90/shapes.hpp"

namespace cpnsa::cuda {

std::span<const HopperShape> hopper_shapes() {
  static const std::vector<HopperShape> listed = [] {
    std::vector<HopperShape> list;
    for (const sm90::Shape& shape : sm90::shapes) list.push_back({shape.d_qk, shape.d_v, shape.heads_per_group});
    return list;
  }();
  return listed;
}

namespace sm90 {

void refuse_shape(const Config& config) {
  throw UnsupportedError(
      fmt::format("cuda device: found head dimensions {} and {} with {} query heads per KV head, expected a shape of "
                  "hopper_shapes()",
                  config.head_dim_qk, config.head_dim_v, config.heads_per_group()));
}

bool serves(const Config& config, DType dtype) {
  // The kernels take maxima before they scale scores, which a negative scale would turn round.
  return index_of(config) >= 0 && (dtype == DType::bf16 || dtype == DType::f16) && config.scale() > 0;
}

template <>
bool serves(const SelectBlocks& a) {
  const Config& config = *a.config;
  return serves(config, a.dtype) && config.compress_block == 32 && config.compress_stride == 16 &&
         config.select_block == tokens_per_block &&
         config.select_count - config.init_blocks - config.local_blocks <= 32;
}

}  // namespace sm90

}  // namespace cpnsa::cuda
