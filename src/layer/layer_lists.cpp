#include "src/layer/layer_lists.hpp"

#include <utility>
#include <vector>

namespace cpnsa {
namespace {

std::vector<RowRange> reversed(std::vector<RowRange> ranges) {
  for (RowRange& range : ranges) std::swap(range.source, range.destination);
  return ranges;
}

}  // namespace

HaloLists::HaloLists(Device& device, const planning::RankHalo& halo)
    : own_to_send(device, halo.packed),
      received_to_halo(device, halo.received),
      own_to_halo(device, halo.own),
      halo_to_received(device, reversed(halo.received)),
      send_to_own(device, reversed(halo.packed)),
      halo_to_own(device, reversed(halo.own)) {}

std::size_t HaloLists::device_bytes() const {
  std::size_t bytes = 0;
  for (const auto* list :
       {&own_to_send, &received_to_halo, &own_to_halo, &halo_to_received, &send_to_own, &halo_to_own})
    bytes += list->device_bytes();
  return bytes;
}

namespace {

std::vector<RowRange> summaries_of_documents(const planning::Layout& layout) {
  std::vector<RowRange> ranges;
  for (const planning::Document& document : layout.documents)
    if (document.summaries > 0) ranges.push_back({0, document.summary, document.summaries});
  return ranges;
}

}  // namespace

LayerLists::LayerLists(Device& device, const Config& config, const planning::Plan& plan, Exchange exchange)
    : queries(device.schedule(plan.segments, config)),
      summary_halo(device, plan.summary_halo),
      window_halo(device, plan.window_halo),
      own_runs(device, plan.own_runs),
      halo_runs(device, plan.halo_runs),
      own_to_gathered(device, plan.own_to_gathered),
      gathered_to_all(device, plan.gathered_to_all),
      all_to_gathered(device, plan.all_to_gathered),
      own_to_all(device, plan.own_to_all),
      documents_summaries(device, summaries_of_documents(plan.layout)),
      one_row(device, {{0, 0, 1}}),
      gather_all(std::make_shared<planning::BlockSchedule>(plan.blocks.gather())),
      table(device, plan.blocks.any_reachable() && exchange != Exchange::pull ? std::vector<BlockLocation>{}
                                                                              : gather_all->table),
      pulled_blocks(device, exchange == Exchange::pull ? plan.blocks.pulled() : std::vector<PulledBlock>{}),
      block_readers(device, exchange == Exchange::pull ? plan.blocks.readers() : std::vector<PulledBlock>{}) {}

std::size_t LayerLists::device_bytes() const {
  std::size_t bytes = summary_halo.device_bytes() + window_halo.device_bytes();
  for (const auto* list : {&own_to_gathered, &gathered_to_all, &all_to_gathered, &own_to_all, &documents_summaries})
    bytes += list->device_bytes();
  return bytes + own_runs.device_bytes() + halo_runs.device_bytes() + table.device_bytes() +
         pulled_blocks.device_bytes() + block_readers.device_bytes();
}

}  // namespace cpnsa
