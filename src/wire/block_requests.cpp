#include "src/wire/block_requests.hpp"

#include <algorithm>
#include <vector>

namespace cpnsa {

namespace {

planning::NeedMatrix matrix_of(const LayerPlan& layer) {
  return {layer.ranks(), layer.plan.layout.blocks, layer.config.num_kv_heads};
}

}  // namespace

BlockRequests::BlockRequests(Device& device, const LayerPlan& layer)
    : words_(device, layer.need_bytes() * to_size(layer.ranks())),
      backward_words_(device, layer.pulls() && layer.options.backward ? words_.size() : 0) {}

void BlockRequests::copy_own(const LayerPlan& layer, Device& device, const std::uint32_t* own, Stream compute) {
  std::byte* const part = static_cast<std::byte*>(words_.data()) + layer.need_bytes() * to_size(layer.rank());
  device.copy(part, own, layer.need_bytes(), compute);
}

void BlockRequests::copy_all(const LayerPlan& layer, Wire& wire, const std::uint32_t* own) {
  const RankPointers parts = wire.in_windows(own);
  auto* next = static_cast<std::byte*>(backward_words_.data());
  wire.read(wire.stream(), [&] {
    for (int rank = 0; rank < layer.ranks(); ++rank, next += layer.need_bytes())
      wire.device.copy(next, parts.of[rank], layer.need_bytes(), wire.stream());
  });
}

std::int64_t BlockRequests::send(const LayerPlan& layer, Wire& wire, std::uint32_t* needs, Stream compute) {
  const std::size_t own_bytes = layer.need_bytes();
  if (!layer.reads_needs()) {
    copy_own(layer, wire.device, needs + layer.need_words() * layer.rank(), compute);
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
    return {lists.gather_all, layer.options.exchange == Exchange::automatic ? Exchange::fetch : layer.options.exchange,
            0};
  if (!layer.reads_needs()) return {lists.gather_all, layer.options.exchange, 0};

  wire.communicator.wait(wire.device, wire.stream());
  planning::NeedMatrix needs = matrix_of(layer);
  std::copy_n(static_cast<const std::uint32_t*>(words_.data()), needs.words().size(), needs.words().begin());
  const std::int64_t needed = blocks.needed(needs, layer.rank());
  if (layer.options.exchange == Exchange::automatic && blocks.choose(needs) == Exchange::gather)
    return {lists.gather_all, Exchange::gather, needed};
  return {std::make_shared<planning::BlockSchedule>(blocks.fetch(needs)), Exchange::fetch, needed};
}

std::int64_t BlockRequests::count_own(const LayerPlan& layer) const {
  return layer.plan.blocks.needed(own_needs(layer), layer.rank());
}

planning::NeedMatrix BlockRequests::own_needs(const LayerPlan& layer) const {
  planning::NeedMatrix needs = matrix_of(layer);
  const auto own = static_cast<std::ptrdiff_t>(layer.need_words() * layer.rank());
  std::copy_n(static_cast<const std::uint32_t*>(words_.data()) + own, layer.need_words(), needs.words().begin() + own);
  return needs;
}

planning::BlockSchedule BlockRequests::pulled_forward(const LayerPlan& layer) const {
  return layer.plan.blocks.pull(own_needs(layer));
}

planning::BlockSchedule BlockRequests::pulled_backward(const LayerPlan& layer) const {
  planning::NeedMatrix needs = matrix_of(layer);
  std::copy_n(static_cast<const std::uint32_t*>(backward_words_.data()), needs.words().size(), needs.words().begin());
  return layer.plan.blocks.pull(needs);
}

}  // namespace cpnsa
