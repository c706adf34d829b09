#include <cuda_runtime.h>

#include "cpnsa/pull_ops.hpp"
#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/schedule/segment_schedule.hpp"
#include "kernels/cuda/sm80/run_op.hpp"
#include "kernels/cuda/sm80/shapes.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

constexpr int block_threads = 256;

/// Sizes of a block in 16-byte units.
struct BlockUnits {
  int tokens;          // m
  std::int64_t heads;  // G
  int k;               // d_qk
  int v;               // d_v
};

BlockUnits units_of(const Config& config, int unit_items) {
  return {static_cast<int>(config.select_block), config.num_kv_heads, static_cast<int>(config.head_dim_qk / unit_items),
          static_cast<int>(config.head_dim_v / unit_items)};
}

// Calls visit(own, slot) for every unit of a block's keys or values: its place in [rows, G, width] and in the slot.
template <class Visit>
__device__ __forceinline__ void for_each_unit(const BlockSlot& block, const BlockUnits& units, int width,
                                              std::int64_t slot_first, Visit&& visit) {
  for (int i = static_cast<int>(threadIdx.x); i < units.tokens * width; i += block_threads) {
    const int token = i / width, unit = i % width;
    visit(((block.row + token) * units.heads + block.group) * width + unit, slot_first + i);
  }
}

__global__ void __launch_bounds__(block_threads)
    pack_blocks_kernel(const BlockSlot* blocks, BlockUnits units, const uint4* __restrict__ k,
                       const uint4* __restrict__ v, uint4* __restrict__ pool) {
  const BlockSlot block = blocks[blockIdx.x];
  const std::int64_t keys = static_cast<std::int64_t>(block.slot) * units.tokens * (units.k + units.v);
  const std::int64_t values = keys + units.tokens * units.k;
  for_each_unit(block, units, units.k, keys, [&](std::int64_t own, std::int64_t slot) { pool[slot] = k[own]; });
  for_each_unit(block, units, units.v, values, [&](std::int64_t own, std::int64_t slot) { pool[slot] = v[own]; });
}

__device__ __forceinline__ void add(float4& sum, const float4& x) {
  sum.x += x.x;
  sum.y += x.y;
  sum.z += x.z;
  sum.w += x.w;
}

__global__ void __launch_bounds__(block_threads)
    add_blocks_kernel(const BlockSlot* blocks, BlockUnits units, const float4* __restrict__ pool,
                      float4* __restrict__ dk, float4* __restrict__ dv) {
  const BlockSlot block = blocks[blockIdx.x];
  const std::int64_t keys = static_cast<std::int64_t>(block.slot) * units.tokens * (units.k + units.v);
  const std::int64_t values = keys + units.tokens * units.k;
  for_each_unit(block, units, units.k, keys, [&](std::int64_t own, std::int64_t slot) { add(dk[own], pool[slot]); });
  for_each_unit(block, units, units.v, values, [&](std::int64_t own, std::int64_t slot) { add(dv[own], pool[slot]); });
}

__device__ __forceinline__ bool is_needed(const void* needs, const PulledBlock& block, std::int64_t heads, int group) {
  const std::int64_t bit = block.block * heads + group;
  return (static_cast<const std::uint32_t*>(needs)[bit / 32] >> (bit % 32) & 1u) != 0;
}

__global__ void __launch_bounds__(block_threads)
    pull_blocks_kernel(const PulledBlock* blocks, BlockUnits units, int group, const __grid_constant__ RankPointers k,
                       const __grid_constant__ RankPointers v, const std::uint32_t* __restrict__ needs,
                       uint4* __restrict__ pool) {
  const PulledBlock pulled = blocks[blockIdx.x];
  if (!is_needed(needs, pulled, units.heads, group)) return;
  const BlockSlot block{pulled.row, group, pulled.slot};
  const std::int64_t keys = static_cast<std::int64_t>(block.slot) * units.tokens * (units.k + units.v);
  const std::int64_t values = keys + units.tokens * units.k;
  const auto* const owners_k = static_cast<const uint4*>(k.of[pulled.rank]);
  const auto* const owners_v = static_cast<const uint4*>(v.of[pulled.rank]);
  for_each_unit(block, units, units.k, keys, [&](std::int64_t own, std::int64_t slot) { pool[slot] = owners_k[own]; });
  for_each_unit(block, units, units.v, values,
                [&](std::int64_t own, std::int64_t slot) { pool[slot] = owners_v[own]; });
}

// The thread block of a block's first item adds what all of its readers left, in their order.
__global__ void __launch_bounds__(block_threads)
    add_pulled_blocks_kernel(const PulledBlock* blocks, std::int64_t count, BlockUnits units, int group,
                             const __grid_constant__ RankPointers needs, const __grid_constant__ RankPointers pool,
                             float4* __restrict__ dk, float4* __restrict__ dv) {
  const std::int64_t own_block = blocks[blockIdx.x].block;
  if (blockIdx.x > 0 && blocks[blockIdx.x - 1].block == own_block) return;
  for (std::int64_t i = blockIdx.x; i < count && blocks[i].block == own_block; ++i) {
    const PulledBlock pulled = blocks[i];
    if (!is_needed(needs.of[pulled.rank], pulled, units.heads, group)) continue;
    const BlockSlot block{pulled.row, group, pulled.slot};
    const std::int64_t keys = static_cast<std::int64_t>(block.slot) * units.tokens * (units.k + units.v);
    const std::int64_t values = keys + units.tokens * units.k;
    const auto* const left = static_cast<const float4*>(pool.of[pulled.rank]);
    for_each_unit(block, units, units.k, keys, [&](std::int64_t own, std::int64_t slot) { add(dk[own], left[slot]); });
    for_each_unit(block, units, units.v, values,
                  [&](std::int64_t own, std::int64_t slot) { add(dv[own], left[slot]); });
  }
}

// A thread block: one tile of queries, whose picks lie one after another.
__global__ void __launch_bounds__(block_threads)
    mark_needs_kernel(const QueryTile* tiles, const Segment* segments, int heads, int count,
                      const std::int32_t* __restrict__ selected, std::uint32_t* bitmap) {
  const QueryTile tile = tiles[blockIdx.x];
  const std::int64_t document = segments[tile.segment].block;
  const std::int32_t* const picks = selected + tile.row * heads * count;
  for (int i = static_cast<int>(threadIdx.x); i < tile.rows * heads * count; i += block_threads) {
    const std::int32_t block = picks[i];
    if (block < 0) continue;
    const std::int64_t bit = (document + block) * heads + i / count % heads;
    const std::uint32_t mask = 1u << (bit % 32);
    // Most pairs have been marked by a neighbour: a read is cheaper than one more atomic on a crowded word.
    if ((__ldcg(bitmap + bit / 32) & mask) == 0) atomicOr(bitmap + bit / 32, mask);
  }
}

}  // namespace

template <>
void run_op(const PackBlocks& a, cudaStream_t stream) {
  if (a.blocks.count == 0) return;
  pack_blocks_kernel<<<static_cast<unsigned>(a.blocks.count), block_threads, 0, stream>>>(
      a.blocks.device, units_of(*a.config, pack_items), static_cast<const uint4*>(a.k), static_cast<const uint4*>(a.v),
      static_cast<uint4*>(a.pool));
  check_launch("pack_blocks");
}

template <>
void run_op(const AddBlocks& a, cudaStream_t stream) {
  if (a.blocks.count == 0) return;
  add_blocks_kernel<<<static_cast<unsigned>(a.blocks.count), block_threads, 0, stream>>>(
      a.blocks.device, units_of(*a.config, 4), static_cast<const float4*>(a.pool), static_cast<float4*>(a.dk),
      static_cast<float4*>(a.dv));
  check_launch("add_blocks");
}

template <>
void run_op(const PullBlocks& a, cudaStream_t stream) {
  if (a.blocks.count == 0) return;
  pull_blocks_kernel<<<static_cast<unsigned>(a.blocks.count), block_threads, 0, stream>>>(
      a.blocks.device, units_of(*a.config, pack_items), static_cast<int>(a.group), a.k, a.v, a.needs,
      static_cast<uint4*>(a.pool));
  check_launch("pull_blocks");
}

template <>
void run_op(const AddPulledBlocks& a, cudaStream_t stream) {
  if (a.blocks.count == 0) return;
  add_pulled_blocks_kernel<<<static_cast<unsigned>(a.blocks.count), block_threads, 0, stream>>>(
      a.blocks.device, a.blocks.count, units_of(*a.config, 4), static_cast<int>(a.group), a.needs, a.pool,
      static_cast<float4*>(a.dk), static_cast<float4*>(a.dv));
  check_launch("add_pulled_blocks");
}

template <>
void run_op(const MarkNeeds& a, cudaStream_t stream) {
  const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
  const ListView<QueryTile> tiles = schedule.tiles(needs_tile_queries);
  if (tiles.count == 0) return;
  mark_needs_kernel<<<static_cast<unsigned>(tiles.count), block_threads, 0, stream>>>(
      tiles.device, schedule.device_segments(), static_cast<int>(a.config->num_kv_heads),
      static_cast<int>(a.config->select_count), a.selected, a.bitmap);
  check_launch("mark_needs");
}

}  // namespace cpnsa::cuda::sm80
