#pragma once

#include <cstdint>

#include "src/layer/arguments.hpp"
#include "src/wire/block_requests.hpp"
#include "src/wire/block_rounds.hpp"

namespace cpnsa {

/// The result of enqueuing a forward.
struct ForwardResult {
  BlockAgreement blocks;
  std::int64_t request_bytes = 0;  ///< received with the ranks' needs
};

/// Enqueues a forward of one rank on `compute` and on the wire's streams. The arguments are valid.
ForwardResult run_forward(const LayerPlan& layer, const LayerLists& lists, Wire& wire, RoundResources& rounds,
                          BlockRequests& requests, const ForwardArguments& given, Stream compute);

}  // namespace cpnsa
