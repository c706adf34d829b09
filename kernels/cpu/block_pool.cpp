#include <algorithm>

#include "cpnsa/pull_ops.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/scalar.hpp"
#include "kernels/cpu/selected_union.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void pack(const PackBlocks& a) {
  const Config& config = *a.config;
  for (std::int64_t i = 0; i < a.blocks.count; ++i) {
    const BlockSlot& block = a.blocks.host[i];
    const auto own = own_rows(block.row, config, block.group, static_cast<const T*>(a.k), static_cast<const T*>(a.v));
    const auto slot = slot_rows(block.slot, config, static_cast<T*>(a.pool));
    for (std::int64_t token = 0; token < config.select_block; ++token) {
      std::copy_n(own.k.row(token), config.head_dim_qk, slot.k.row(token));
      std::copy_n(own.v.row(token), config.head_dim_v, slot.v.row(token));
    }
  }
}

template <class A>
void add(const AddBlocks& a) {
  const Config& config = *a.config;
  for (std::int64_t i = 0; i < a.blocks.count; ++i) {
    const BlockSlot& block = a.blocks.host[i];
    const auto own = own_rows(block.row, config, block.group, static_cast<A*>(a.dk), static_cast<A*>(a.dv));
    const auto slot = slot_rows(block.slot, config, static_cast<const A*>(a.pool));
    for (std::int64_t token = 0; token < config.select_block; ++token) {
      add_row(slot.k.row(token), config.head_dim_qk, own.k.row(token));
      add_row(slot.v.row(token), config.head_dim_v, own.v.row(token));
    }
  }
}

bool needs(const void* bitmap, const PulledBlock& block, std::int64_t groups, std::int64_t group) {
  const std::int64_t bit = block.block * groups + group;
  return (static_cast<const std::uint32_t*>(bitmap)[bit / 32] >> (bit % 32) & 1u) != 0;
}

// A pulled block is packed or added as a list of one.
template <class Op, class Visit>
void for_each_block(const Op& a, const Visit& visit) {
  for (std::int64_t i = 0; i < a.blocks.count; ++i) {
    const PulledBlock& block = a.blocks.host[i];
    const BlockSlot slot{block.row, static_cast<std::int32_t>(a.group), block.slot};
    visit(block, ListView<BlockSlot>{&slot, &slot, 1});
  }
}

}  // namespace

template <>
void run_op(const PackBlocks& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { pack<T>(a); });
}

template <>
void run_op(const AddBlocks& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { add<Arithmetic<T>>(a); });
}

template <>
void run_op(const PullBlocks& a) {
  for_each_block(a, [&](const PulledBlock& block, const ListView<BlockSlot>& slot) {
    const auto owner = static_cast<std::size_t>(block.rank);
    if (needs(a.needs, block, a.config->num_kv_heads, a.group))
      run_op(PackBlocks{{a.config, a.dtype, nullptr}, a.k.of[owner], a.v.of[owner], a.pool, slot});
  });
}

template <>
void run_op(const AddPulledBlocks& a) {
  for_each_block(a, [&](const PulledBlock& block, const ListView<BlockSlot>& slot) {
    const auto reader = static_cast<std::size_t>(block.rank);
    if (needs(a.needs.of[reader], block, a.config->num_kv_heads, a.group))
      run_op(AddBlocks{{a.config, a.dtype, nullptr}, a.pool.of[reader], a.dk, a.dv, slot});
  });
}

template <>
void run_op(const MarkNeeds& a) {
  const std::int64_t groups = a.config->num_kv_heads, count = a.config->select_count;
  for (const Segment& segment : a.queries->segments)
    for (std::int64_t row = segment.row; row < segment.row + segment.rows; ++row)
      for (std::int64_t group = 0; group < groups; ++group)
        for (std::int64_t i = 0; i < count; ++i) {
          const std::int32_t block = a.selected[(row * groups + group) * count + i];
          if (block < 0) continue;
          const std::int64_t bit = (segment.block + block) * groups + group;
          a.bitmap[bit / 32] |= 1u << (bit % 32);
        }
}

}  // namespace cpnsa::cpu
