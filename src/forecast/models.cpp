#include <fmt/format.h>

#include <string_view>
#include <vector>

#include "cpnsa/error.hpp"
#include "cpnsa/forecast.hpp"
#include "src/forecast/h200.hpp"

namespace cpnsa {
namespace {

constexpr std::size_t gibibyte = std::size_t{1} << 30;
// The CUDA context, cuBLAS and NCCL's buffers of a process.
constexpr std::size_t taken_by_others = 3 * gibibyte;

Config measured_config() {
  Config config;
  config.num_q_heads = 64, config.num_kv_heads = 4;
  config.head_dim_qk = config.head_dim_v = 128;
  return config.with_defaults();
}

}  // namespace

ComputeModel built_in_compute(std::string_view name, PickPattern picks) {
  const auto& measured = picks == PickPattern::local ? forecasts::h200_local : forecasts::h200_random;
  ComputeModel model{std::string(name),
                     "one H200, docs/performance/h200-128.json",
                     measured_config(),
                     {std::begin(measured), std::end(measured)},
                     0};
  if (name == "h200") {
    model.memory_bytes = 139 * gibibyte - taken_by_others;
  } else if (name == "h100") {
    // As many multiprocessors at the same clock; docs/performance.md measures the same rate of matrix products on both.
    model.source += ", taken for the H100 too";
    model.memory_bytes = 79 * gibibyte - taken_by_others;
  } else {
    throw ArgumentError(fmt::format("GPU: found {}, expected h100 or h200", name));
  }
  return model;
}

NetworkModel built_in_network() {
  // NVLink 4 has 450 GB/s and a 400 Gb/s port 50; large messages reach these parts.
  return {"nvlink+400g",
          "assumed, not measured: NVLink 4 in nodes of 8 GPUs, one 400 Gb/s port per GPU",
          8,
          330e9,
          45e9,
          12e-6,
          25e-6};
}

}  // namespace cpnsa
