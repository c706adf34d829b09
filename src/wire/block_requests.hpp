#pragma once

#include <cstdint>
#include <memory>

#include "src/layer/layer_lists.hpp"
#include "src/layer/layer_plan.hpp"
#include "src/wire/wire.hpp"

namespace cpnsa {

/// How a forward's selected branch gets its blocks: what the ranks' needs led to.
struct BlockAgreement {
  std::shared_ptr<const planning::BlockSchedule> schedule;
  Exchange exchange = Exchange::fetch;  ///< never automatic
  std::int64_t blocks_needed = 0;       ///< Statistics::blocks_needed, unless it is counted later
};

/// The ranks' need matrix on its way from the device to the host. Which (block, KV head) pairs a rank's queries
/// selected is marked on the device; send() gathers it from all ranks where that decides what is exchanged, and read()
/// plans the exchange. Where all reachable blocks are exchanged anyway, and where blocks are pulled, parts of it come
/// to the host for the statistics alone.
class BlockRequests {
 public:
  BlockRequests(Device& device, const LayerPlan& layer);

  /// `needs`: the matrix in device memory, whose own part has been marked on `compute`. Returns bytes received.
  std::int64_t send(const LayerPlan& layer, Wire& wire, std::uint32_t* needs, Stream compute);
  /// Copies this rank's part, marked on `compute`, to the host. That is all where the host reads no needs in a step.
  void copy_own(const LayerPlan& layer, Device& device, const std::uint32_t* own, Stream compute);
  /// The same in a backward that pulls, for all parts, which are in the ranks' windows where this rank has `own`.
  void copy_all(const LayerPlan& layer, Wire& wire, const std::uint32_t* own);

  /// Waits on the host for the other ranks' needs, if the layer reads them. A forward waits nowhere else.
  BlockAgreement read(const LayerPlan& layer, const LayerLists& lists, Wire& wire) const;

  /// Pairs that this rank's queries selected in the last forward and that it does not own, where read() has not counted
  /// them. That forward must be over.
  std::int64_t count_own(const LayerPlan& layer) const;

  /// The blocks that the last forward and the last backward pulled. That step must be over.
  planning::BlockSchedule pulled_forward(const LayerPlan& layer) const;
  planning::BlockSchedule pulled_backward(const LayerPlan& layer) const;

 private:
  planning::NeedMatrix own_needs(const LayerPlan& layer) const;

  PinnedBuffer words_;           ///< [P, LayerPlan::need_words()]
  PinnedBuffer backward_words_;  ///< the same of a backward that pulls
};

}  // namespace cpnsa
