// The moves that the forward and the backward share: rows to and from the wire, one round of blocks, uploads.

#include <algorithm>
#include <cstring>

#include "src/attention_impl.hpp"

namespace cpnsa {

void Layer::hand_over(Stream from, Stream to) {
  device.record(handed_over.get(), from);
  device.wait(to, handed_over.get());
}

void Layer::count_received(Traffic traffic, std::int64_t bytes) {
  statistics.bytes_received[static_cast<std::size_t>(traffic)] += bytes;
}

void Layer::account(const std::array<std::int64_t, traffic_kinds>& predicted, std::int64_t predicted_control) {
  const std::int64_t agreement = static_cast<std::int64_t>(agreement_bytes) * (communicator.size() - 1);
  count_received(Traffic::control, agreement);
  for (std::size_t kind = 0; kind < predicted.size(); ++kind) statistics.bytes_predicted[kind] += predicted[kind];
  statistics.bytes_predicted[static_cast<std::size_t>(Traffic::control)] += predicted_control + agreement;
}

void Layer::exchange(Traffic traffic, const std::vector<planning::PeerRange>& sends, const void* send_base,
                     const std::vector<planning::PeerRange>& receives, void* receive_base, std::size_t item_bytes) {
  std::vector<SendMessage> outgoing;
  for (const planning::PeerRange& range : sends)
    outgoing.push_back({range.peer,
                        static_cast<const std::byte*>(send_base) + static_cast<std::size_t>(range.first) * item_bytes,
                        static_cast<std::size_t>(range.count) * item_bytes});
  std::vector<ReceiveMessage> incoming;
  for (const planning::PeerRange& range : receives) {
    incoming.push_back({range.peer,
                        static_cast<std::byte*>(receive_base) + static_cast<std::size_t>(range.first) * item_bytes,
                        static_cast<std::size_t>(range.count) * item_bytes});
    count_received(traffic, static_cast<std::int64_t>(incoming.back().bytes));
  }
  communicator.exchange(outgoing, incoming, device, communication.get());
}

void Layer::copy_rows(const ListView<RowRange>& ranges, const void* source, void* destination, std::int64_t width,
                      std::size_t element, Stream stream) {
  if (ranges.count == 0) return;
  const auto stride = static_cast<std::int64_t>(element) * width;
  device.run(CopyRows{source, destination, stride, stride, stride, ranges}, stream);
}

void Layer::add_rows(const ListView<RowRange>& ranges, const void* source, void* destination, std::int64_t width,
                     Stream stream) {
  if (ranges.count == 0) return;
  device.run(AddRows{source, destination, width, width, width, accumulate, ranges}, stream);
}

void Layer::rows_to_tokens(const ListView<RowRange>& ranges, const void* k, const void* v, void* tokens,
                           std::size_t element, Stream stream) {
  if (ranges.count == 0) return;
  const std::int64_t k_bytes = sizes.k_width * static_cast<std::int64_t>(element);
  const std::int64_t v_bytes = sizes.v_width * static_cast<std::int64_t>(element);
  device.run(CopyRows{k, tokens, k_bytes, k_bytes + v_bytes, k_bytes, ranges}, stream);
  device.run(CopyRows{v, static_cast<std::byte*>(tokens) + k_bytes, v_bytes, k_bytes + v_bytes, v_bytes, ranges},
             stream);
}

void Layer::tokens_to_rows(const ListView<RowRange>& ranges, const void* tokens, void* k, void* v, std::size_t element,
                           Stream stream) {
  if (ranges.count == 0) return;
  const std::int64_t k_bytes = sizes.k_width * static_cast<std::int64_t>(element);
  const std::int64_t v_bytes = sizes.v_width * static_cast<std::int64_t>(element);
  device.run(CopyRows{tokens, k, k_bytes + v_bytes, k_bytes, k_bytes, ranges}, stream);
  device.run(CopyRows{static_cast<const std::byte*>(tokens) + k_bytes, v, k_bytes + v_bytes, v_bytes, v_bytes, ranges},
             stream);
}

void Layer::add_tokens_to_rows(const ListView<RowRange>& ranges, const void* tokens, void* k, void* v, Stream stream) {
  if (ranges.count == 0) return;
  const auto k_bytes = static_cast<std::size_t>(sizes.k_width) * sizes.accumulated;
  device.run(AddRows{tokens, k, sizes.token_width(), sizes.k_width, sizes.k_width, accumulate, ranges}, stream);
  device.run(AddRows{static_cast<const std::byte*>(tokens) + k_bytes, v, sizes.token_width(), sizes.v_width,
                     sizes.v_width, accumulate, ranges},
             stream);
}

ListView<BlockSlot> Layer::packed_of(const planning::BlockSchedule& schedule, std::size_t round,
                                     const ExchangeBuffers& buffers) const {
  std::size_t first = 0;
  for (std::size_t earlier = 0; earlier < round; ++earlier) first += schedule.rounds[earlier].packed.size();
  const std::vector<BlockSlot>& packed = schedule.rounds[round].packed;
  const BlockSlot* device_list = device.host_accessible() ? packed.data() : buffers.packed + first;
  return {packed.data(), device_list, static_cast<std::int64_t>(packed.size())};
}

const BlockLocation* Layer::upload(const planning::BlockSchedule& schedule, const ExchangeBuffers& buffers,
                                   ListStaging& staging, Stream stream) {
  if (!plan.blocks.any_reachable()) return own_table.view().device;
  if (staging.in_use && !device.done(staging.copied.get())) {
    device.wait(staging.waits.get(), staging.copied.get());
    communicator.wait(device, staging.waits.get());
  }

  auto* table = static_cast<std::byte*>(staging.memory.data());
  const std::size_t table_bytes = schedule.table.size() * sizeof(BlockLocation);
  std::memcpy(table, schedule.table.data(), table_bytes);
  device.copy(buffers.table, table, table_bytes, stream);

  if (!device.host_accessible()) {
    std::byte* lists = table + table_bytes;
    std::size_t bytes = 0;
    for (const planning::ExchangeRound& round : schedule.rounds) {
      if (round.packed.empty()) continue;
      std::memcpy(lists + bytes, round.packed.data(), round.packed.size() * sizeof(BlockSlot));
      bytes += round.packed.size() * sizeof(BlockSlot);
    }
    if (bytes > 0) device.copy(buffers.packed, lists, bytes, stream);
  }
  device.record(staging.copied.get(), stream);
  staging.in_use = true;
  return buffers.table;
}

void* Layer::pool_of(const planning::BlockSchedule& schedule, std::size_t round, const ExchangeBuffers& buffers,
                     const SavedBuffers& kept) const {
  if (!sizes.keeps_blocks) return buffers.pools[round % 2];
  std::int64_t first = 0;
  for (std::size_t earlier = 0; earlier < round; ++earlier) first += schedule.rounds[earlier].received;
  return static_cast<std::byte*>(kept.blocks) + LayerSizes::bytes(first, sizes.slot_elements, sizes.element);
}

void Layer::fetch(const planning::BlockSchedule& schedule, std::size_t round, const ExchangeBuffers& buffers,
                  void* pool, const void* k, const void* v, Traffic traffic, Stage stage_name) {
  const planning::ExchangeRound& now = schedule.rounds[round];
  const Stream stream = communication.get();
  const StageTimer::Scope timed(timer, stage_name, stream);
  auto pack = stage<PackBlocks>(nullptr);
  pack.k = k;
  pack.v = v;
  pack.pool = buffers.send;
  pack.blocks = packed_of(schedule, round, buffers);
  if (pack.blocks.count > 0) device.run(pack, stream);
  exchange(traffic, now.sends, buffers.send, now.receives, pool,
           static_cast<std::size_t>(sizes.slot_elements) * sizes.element);
  device.record(fetched[round % 2].get(), stream);
}

}  // namespace cpnsa
