#pragma once

#include <cstdint>
#include <span>

#include "cpnsa/forecast.hpp"
#include "cpnsa/ops.hpp"

namespace cpnsa::forecasts {

struct Work {
  ByWork forward{};
  ByWork backward{};
};

/// The work of a rank's tokens and of the summaries that it computes: two operations per multiply-add of the products
/// that the algorithm needs; of the gate, elements of out.
Work work_of(const Config& config, std::span<const Segment> segments, std::int64_t own_summaries);

}  // namespace cpnsa::forecasts
