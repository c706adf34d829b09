#include <fmt/format.h>

#include <vector>

#include "cpnsa/cuda/device.hpp"
#include "cpnsa/error.hpp"
#include "kernels/cuda/sm90/run_op.hpp"
#include "kernels/cuda/sm90/shapes.hpp"

namespace cpnsa::cuda {

std::span<const HopperTile> hopper_tiles() {
  static const std::vector<HopperTile> listed = [] {
    std::vector<HopperTile> list;
    for (const sm90::Shape& shape : sm90::shapes)
      if (shape.heads_per_group == sm90::any_heads) list.push_back({shape.d_qk, shape.d_v});
    return list;
  }();
  return listed;
}

namespace sm90 {

void refuse_shape(const Config& config) {
  throw UnsupportedError(
      fmt::format("cuda device: found head dimensions {} and {} with {} query heads per KV head, expected dimensions "
                  "that one of hopper_tiles() holds",
                  config.head_dim_qk, config.head_dim_v, config.heads_per_group()));
}

bool serves(const Config& config, DType dtype) {
  // The kernels take maxima before they scale scores, which a negative scale would turn round.
  return dense_row(config) >= 0 && (dtype == DType::bf16 || dtype == DType::f16) && config.scale() > 0;
}

}  // namespace sm90

}  // namespace cpnsa::cuda
