#include <algorithm>

#include "kernels/cpu/scalar.hpp"
#include "kernels/cpu/selected_union.hpp"
#include "kernels/cpu/stage_functions.hpp"

namespace cpnsa::cpu {
namespace {

// The two places of a block: in the rank's own tensors and in its slot.
template <class T>
struct BlockPlaces {
  BlockRows<T> own;
  BlockRows<T> slot;
};

template <class T>
BlockPlaces<T> places_of(const BlockSlot& block, const Config& config, T* k, T* v, T* pool) {
  const auto in_pool = static_cast<BlockLocation>(-1 - block.slot);
  const auto k_rows = rows_of_head(k, config, block.head, config.head_dim_qk).from(block.row);
  const auto v_rows = rows_of_head(v, config, block.head, config.head_dim_v).from(block.row);
  return {{k_rows, v_rows}, rows_at<T>(in_pool, config, block.head, k, v, pool)};
}

template <class T>
void pack(const PackBlocks& a) {
  const Config& config = *a.config;
  for (std::int64_t i = 0; i < a.blocks.count; ++i) {
    // One type for both places; the own tensors are only read.
    const auto at = places_of<T>(a.blocks.host[i], config, static_cast<T*>(const_cast<void*>(a.k)),
                                 static_cast<T*>(const_cast<void*>(a.v)), static_cast<T*>(a.pool));
    for (std::int64_t token = 0; token < config.select_block; ++token) {
      std::copy_n(at.own.k.row(token), config.head_dim_qk, at.slot.k.row(token));
      std::copy_n(at.own.v.row(token), config.head_dim_v, at.slot.v.row(token));
    }
  }
}

template <class A>
void add(const AddBlocks& a) {
  const Config& config = *a.config;
  const auto add_row = [](const A* source, std::int64_t count, A* destination) {
    for (std::int64_t c = 0; c < count; ++c) destination[c] += source[c];
  };
  for (std::int64_t i = 0; i < a.blocks.count; ++i) {
    const auto at = places_of<A>(a.blocks.host[i], config, static_cast<A*>(a.dk), static_cast<A*>(a.dv),
                                 static_cast<A*>(const_cast<void*>(a.pool)));
    for (std::int64_t token = 0; token < config.select_block; ++token) {
      add_row(at.slot.k.row(token), config.head_dim_qk, at.own.k.row(token));
      add_row(at.slot.v.row(token), config.head_dim_v, at.own.v.row(token));
    }
  }
}

}  // namespace

void pack_blocks(const PackBlocks& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { pack<T>(a); });
}

void add_blocks(const AddBlocks& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { add<Arithmetic<T>>(a); });
}

void mark_demand(const MarkDemand& a) {
  const std::int64_t heads = a.config->num_kv_heads, count = a.config->select_count;
  for (const Segment& segment : a.queries->segments)
    for (std::int64_t row = segment.row; row < segment.row + segment.rows; ++row)
      for (std::int64_t head = 0; head < heads; ++head)
        for (std::int64_t i = 0; i < count; ++i) {
          const std::int32_t block = a.selected[(row * heads + head) * count + i];
          if (block < 0) continue;
          const std::int64_t bit = (segment.block + block) * heads + head;
          a.bitmap[bit / 32] |= 1u << (bit % 32);
        }
}

}  // namespace cpnsa::cpu
