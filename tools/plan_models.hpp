#pragma once

#include <filesystem>

#include "cpnsa/forecast.hpp"
#include "tools/options.hpp"

namespace cpnsa::tool {

/// The configuration of a plan, whose head counts and dimensions of 0 are those of `cpnsa bench` on a GPU.
Config planned_config(const PlanOptions& options);

/// The times of the first pass of each row of a `cpnsa bench -J` file of one rank. ArgumentError naming the file and
/// the key, with what was found and expected.
ComputeModel measured_compute(const std::filesystem::path& path);

/// The bandwidths and latencies of a `cpnsa doctor -J` file: medians within hosts and between them. Links that it does
/// not have keep the values of `network`.
NetworkModel measured_network(const std::filesystem::path& path, NetworkModel network);

}  // namespace cpnsa::tool
