#include "src/wire/block_rounds.hpp"

#include <cstring>

#include "cpnsa/flight_recorder.hpp"

namespace cpnsa {

BlockRounds::BlockRounds(Wire& wire, const LayerPlan& layer, const LayerLists& lists, RoundResources& resources,
                         const Pass& pass, Stream compute)
    : wire_(wire),
      layer_(layer),
      lists_(lists),
      resources_(resources),
      pass_(pass),
      compute_(compute),
      table_(lists.table.view().count == 0 ? copy_lists() : lists.table.view().device) {}

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
  layer_.pulls() ? pull(round) : receive(round);
  wire_.device.record(resources_.brought[round % 2].get(), stream);
}

void BlockRounds::pull(std::size_t round) {
  auto pull = layer_.arguments<PullBlocks>(nullptr);
  pull.blocks = lists_.pulled_blocks.view();
  if (pull.blocks.count == 0) return;
  pull.k = wire_.in_windows(pass_.window.k);
  pull.v = wire_.in_windows(pass_.window.v);
  pull.needs = pass_.needs;
  pull.group = pass_.schedule.rounds[round].group_begin;
  pull.pool = pool(round);
  wire_.communicator.recorder().set_purpose(name_of(pass_.traffic));
  wire_.read(wire_.stream(), [&] { wire_.device.run(pull, wire_.stream()); });
}

void BlockRounds::receive(std::size_t round) {
  auto pack = layer_.arguments<PackBlocks>(nullptr);
  pack.k = pass_.own.k;
  pack.v = pass_.own.v;
  pack.pool = pass_.buffers.send;
  pack.blocks = packed(round);
  if (pack.blocks.count > 0) wire_.device.run(pack, wire_.stream());
  const planning::ExchangeRound& now = pass_.schedule.rounds[round];
  wire_.exchange({.traffic = pass_.traffic,
                  .sends = now.sends,
                  .send_base = pass_.buffers.send,
                  .receives = now.receives,
                  .receive_base = pool(round),
                  .item_bytes = LayerSizes::bytes(1, layer_.sizes.slot_elements, layer_.sizes.element)});
}

void BlockRounds::wait_for(std::size_t round) {
  if (pass_.blocks == Blocks::brought_in) wire_.device.wait(compute_, resources_.brought[round % 2].get());
}

void BlockRounds::send_back(std::size_t round, const void* dpool, void* returned) {
  wire_.hand_over(compute_, wire_.stream());
  const auto timed = wire_.timed(Stage::return_block_gradients, wire_.stream());
  const planning::ExchangeRound& now = pass_.schedule.rounds[round];
  if (layer_.pulls())
    wire_.meet(Traffic::block_gradients);
  else
    wire_.exchange({.traffic = Traffic::block_gradients,
                    .sends = now.receives,
                    .send_base = dpool,
                    .receives = now.sends,
                    .receive_base = returned,
                    .item_bytes = LayerSizes::bytes(1, layer_.sizes.slot_elements, layer_.sizes.accumulated)});
  wire_.device.record(resources_.returned[round % 2].get(), wire_.stream());
}

void BlockRounds::wait_for_returned(std::size_t round) {
  wire_.device.wait(compute_, resources_.returned[round % 2].get());
}

}  // namespace cpnsa
