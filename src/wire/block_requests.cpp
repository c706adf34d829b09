#include "src/wire/block_requests.hpp"

#include <algorithm>
#include <vector>

namespace cpnsa {

BlockRequests::BlockRequests(Device& device, const LayerPlan& layer)
    : words_(device, layer.need_bytes() * to_size(layer.ranks())) {}

std::int64_t BlockRequests::send(const LayerPlan& layer, Wire& wire, std::uint32_t* needs, Stream compute) {
  const std::size_t own_bytes = layer.need_bytes();
  if (!layer.reads_needs()) {
    wire.device.copy(words_.data(), needs + layer.need_words() * layer.rank(), own_bytes, compute);
    return 0;
  }
  wire.hand_over(compute, wire.stream());
  wire.all_gather(Traffic::control, needs, std::vector<std::size_t>(to_size(layer.ranks()), own_bytes));
  wire.device.copy(words_.data(), needs, own_bytes * to_size(layer.ranks()), wire.stream());
  return static_cast<std::int64_t>(own_bytes) * (layer.ranks() - 1);
}

BlockAgreement BlockRequests::read(const LayerPlan& layer, const LayerLists& lists, Wire& wire) const {
  const planning::BlockPlanner& blocks = layer.plan.blocks;
  if (!blocks.any_reachable())  // nothing travels; the schedule's table says where own blocks are
    return {lists.gather_all, layer.options.exchange == Exchange::gather ? Exchange::gather : Exchange::fetch, 0};
  if (!layer.reads_needs()) return {lists.gather_all, Exchange::gather, 0};

  wire.communicator.wait(wire.device, wire.stream());
  planning::NeedMatrix needs(layer.ranks(), layer.plan.layout.blocks, layer.config.num_kv_heads);
  std::copy_n(static_cast<const std::uint32_t*>(words_.data()), needs.words().size(), needs.words().begin());
  const std::int64_t needed = blocks.needed(needs, layer.rank());
  if (layer.options.exchange == Exchange::automatic && blocks.choose(needs) == Exchange::gather)
    return {lists.gather_all, Exchange::gather, needed};
  return {std::make_shared<planning::BlockSchedule>(blocks.fetch(needs)), Exchange::fetch, needed};
}

std::int64_t BlockRequests::count_own(const LayerPlan& layer) const {
  planning::NeedMatrix needs(layer.ranks(), layer.plan.layout.blocks, layer.config.num_kv_heads);
  const auto own = static_cast<std::ptrdiff_t>(layer.need_words() * layer.rank());
  std::copy_n(static_cast<const std::uint32_t*>(words_.data()), layer.need_words(), needs.words().begin() + own);
  return layer.plan.blocks.needed(needs, layer.rank());
}

}  // namespace cpnsa
