#include "src/wire/block_rounds.hpp"

#include <cstring>

namespace cpnsa {

BlockRounds::BlockRounds(Wire& wire, const LayerPlan& layer, const LayerLists& lists, RoundResources& resources,
                         const Pass& pass, Stream compute)
    : wire_(wire),
      layer_(layer),
      resources_(resources),
      pass_(pass),
      compute_(compute),
      table_(layer.plan.blocks.any_reachable() ? copy_lists() : lists.own_table.view().device) {}

const BlockLocation* BlockRounds::copy_lists() {
  Device& device = wire_.device;
  if (resources_.lists_in_use && !device.done(resources_.lists_copied.get())) {
    device.wait(resources_.waits.get(), resources_.lists_copied.get());
    wire_.communicator.wait(device, resources_.waits.get());
  }

  const planning::BlockSchedule& schedule = pass_.schedule;
  auto* table = static_cast<std::byte*>(resources_.lists.data());
  const std::size_t table_bytes = schedule.table.size() * sizeof(BlockLocation);
  std::memcpy(table, schedule.table.data(), table_bytes);
  device.copy(pass_.buffers.table, table, table_bytes, compute_);

  if (!device.host_accessible()) {
    std::byte* lists = table + table_bytes;
    std::size_t bytes = 0;
    for (const planning::ExchangeRound& round : schedule.rounds) {
      if (round.packed.empty()) continue;
      std::memcpy(lists + bytes, round.packed.data(), round.packed.size() * sizeof(BlockSlot));
      bytes += round.packed.size() * sizeof(BlockSlot);
    }
    if (bytes > 0) device.copy(pass_.buffers.packed, lists, bytes, compute_);
  }
  device.record(resources_.lists_copied.get(), compute_);
  resources_.lists_in_use = true;
  return pass_.buffers.table;
}

ListView<BlockSlot> BlockRounds::packed(std::size_t round) const {
  const auto& rounds = pass_.schedule.rounds;
  std::size_t first = 0;
  for (std::size_t earlier = 0; earlier < round; ++earlier) first += rounds[earlier].packed.size();
  const std::vector<BlockSlot>& list = rounds[round].packed;
  const BlockSlot* in_device = wire_.device.host_accessible() ? list.data() : pass_.buffers.packed + first;
  return {list.data(), in_device, static_cast<std::int64_t>(list.size())};
}

void* BlockRounds::pool(std::size_t round) const {
  if (!pass_.saved_blocks) return pass_.buffers.pools[round % 2];
  std::int64_t first = 0;
  for (std::size_t earlier = 0; earlier < round; ++earlier) first += pass_.schedule.rounds[earlier].received;
  return static_cast<std::byte*>(pass_.saved_blocks) +
         LayerSizes::bytes(first, layer_.sizes.slot_elements, layer_.sizes.element);
}

void BlockRounds::bring(std::size_t round) {
  std::optional<std::size_t>& in_pool = in_pool_[round % 2];
  if (pass_.blocks == Blocks::in_place || in_pool == round) return;
  in_pool = round;
  const Stream stream = wire_.stream();
  wire_.hand_over(compute_, stream);  // the lists are there, and the round that had the pool before has left it
  const auto timed = wire_.timed(pass_.stage, stream);
  auto pack = layer_.arguments<PackBlocks>(nullptr);
  pack.k = pass_.own.k;
  pack.v = pass_.own.v;
  pack.pool = pass_.buffers.send;
  pack.blocks = packed(round);
  if (pack.blocks.count > 0) wire_.device.run(pack, stream);
  const planning::ExchangeRound& now = pass_.schedule.rounds[round];
  wire_.exchange(pass_.traffic, now.sends, pass_.buffers.send, now.receives, pool(round),
                 LayerSizes::bytes(1, layer_.sizes.slot_elements, layer_.sizes.element));
  wire_.device.record(resources_.brought[round % 2].get(), stream);
}

void BlockRounds::wait_for(std::size_t round) {
  if (pass_.blocks == Blocks::brought_in) wire_.device.wait(compute_, resources_.brought[round % 2].get());
}

void BlockRounds::send_back(std::size_t round, const void* dpool, void* returned) {
  wire_.hand_over(compute_, wire_.stream());
  const auto timed = wire_.timed(Stage::return_block_gradients, wire_.stream());
  const planning::ExchangeRound& now = pass_.schedule.rounds[round];
  wire_.exchange(Traffic::block_gradients, now.receives, dpool, now.sends, returned,
                 LayerSizes::bytes(1, layer_.sizes.slot_elements, layer_.sizes.accumulated));
  wire_.device.record(resources_.returned[round % 2].get(), wire_.stream());
}

void BlockRounds::wait_for_returned(std::size_t round) {
  wire_.device.wait(compute_, resources_.returned[round % 2].get());
}

}  // namespace cpnsa
