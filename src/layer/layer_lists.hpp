#pragma once

#include <cstddef>
#include <memory>

#include "src/layer/device_list.hpp"
#include "src/planning/plan.hpp"

namespace cpnsa {

/// A planned halo's lists. The forward packs own rows, exchanges them, and copies what arrived and own rows to the
/// halo; the backward goes the same way back.
struct HaloLists {
  HaloLists(Device& device, const planning::RankHalo& halo);

  DeviceList<RowRange> own_to_send;
  DeviceList<RowRange> received_to_halo;
  DeviceList<RowRange> own_to_halo;
  DeviceList<RowRange> halo_to_received;  ///< backward: halo rows -> what is sent to their owners
  DeviceList<RowRange> send_to_own;       ///< backward: what returns -> own rows
  DeviceList<RowRange> halo_to_own;
  std::size_t device_bytes() const;
};

/// A layer's plan as lists in the device's memory; they never change.
struct LayerLists {
  LayerLists(Device& device, const Config& config, const planning::Plan& plan, Exchange exchange);

  std::unique_ptr<SegmentSchedule> queries;
  HaloLists summary_halo;
  HaloLists window_halo;
  DeviceList<SummaryRun> own_runs;
  DeviceList<SummaryRun> halo_runs;
  DeviceList<RowRange> own_to_gathered;
  DeviceList<RowRange> gathered_to_all;
  DeviceList<RowRange> all_to_gathered;
  DeviceList<RowRange> own_to_all;
  DeviceList<RowRange> documents_summaries;                   ///< summary of its document -> index among all C
  DeviceList<RowRange> one_row;                               ///< {0, 0, 1}: a whole buffer as one row
  std::shared_ptr<const planning::BlockSchedule> gather_all;  ///< the schedule of Exchange::gather
  DeviceList<BlockLocation> table;                            ///< its table, where no other is made in a step
  DeviceList<PulledBlock> pulled_blocks;                      ///< of Exchange::pull: BlockPlanner::pulled()
  DeviceList<PulledBlock> block_readers;                      ///< of Exchange::pull: BlockPlanner::readers()
  std::size_t device_bytes() const;
};

}  // namespace cpnsa
