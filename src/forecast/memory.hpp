#pragma once

#include "cpnsa/forecast.hpp"
#include "src/layer/layer_plan.hpp"

namespace cpnsa::forecasts {

/// The memory of a layer by named part, from the code that lays its buffers out. The parts sum to the plan's bytes.
void add_memory(const LayerPlan& layer, RankForecast& rank);

}  // namespace cpnsa::forecasts
