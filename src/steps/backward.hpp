#pragma once

#include <cstdint>

#include "src/layer/arguments.hpp"
#include "src/wire/block_requests.hpp"
#include "src/wire/block_rounds.hpp"

namespace cpnsa {

/// The result of enqueuing a backward.
struct BackwardResult {
  std::int64_t parameter_bytes = 0;  ///< received for the parameters' sums over the ranks
};

/// Enqueues a backward of one rank on `compute` and on the wire's streams. The arguments are valid; `schedule` is that
/// of the forward.
BackwardResult run_backward(const LayerPlan& layer, const LayerLists& lists, Wire& wire, RoundResources& rounds,
                            BlockRequests& requests, const planning::BlockSchedule& schedule,
                            const BackwardArguments& given, Stream compute);

}  // namespace cpnsa
