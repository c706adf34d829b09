#pragma once

#include <cstdint>

#include "cpnsa/forecast.hpp"
#include "src/planning/block_exchange.hpp"
#include "src/planning/layout.hpp"

namespace cpnsa::forecasts {

/// The need matrix of all ranks for sampled picks: what the ranks' block requests would be.
planning::NeedMatrix sample_needs(const Config& config, const planning::Layout& layout, PickPattern picks,
                                  std::uint64_t seed);

}  // namespace cpnsa::forecasts
