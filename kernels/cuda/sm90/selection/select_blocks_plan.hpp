#pragma once

// How the kernel of the importance for any number of heads divides its work. Plain C++, for the kernel and the
// schedule.

#include <algorithm>
#include <cstdint>

#include "cpnsa/config.hpp"
#include "kernels/cuda/sm90/shapes.hpp"

namespace cpnsa::cuda::sm90 {

/// The product of a warpgroup has 64 summaries and 128 columns: 16 slots of 8 queries. A slot is a head of 8 queries;
/// the slots of `chunks` times 8 queries fill the columns. Where a KV head has more than 16 query heads, a slot is one
/// of `heads`, and a product is made for each of the `parts` of the heads.
struct SelectPlan {
  static constexpr int max_warpgroups = 4;
  static constexpr int max_q_tiles = 8;  ///< of all warpgroups
  static constexpr int window = 128;     ///< summaries whose sums are in shared memory at a time
  static constexpr int max_num_scored = 128;

  int parts;
  int heads;             ///< of a part
  int chunks;            ///< of 8 queries, per warpgroup
  int per_block;         ///< m / s: summaries that begin in a block
  int reach;             ///< l / s - 1: summaries before them that overlap the block
  int carry;             ///< sums before the window that its blocks need, rounded up to 4
  int pitch;             ///< floats from a query's sums to the next one's
  int warpgroups = 0;    ///< that consume; 0: shared memory is too small
  int q_tiles = 0;       ///< tiles of q per warpgroup in shared memory
  bool streams = false;  ///< the parts of q do not fit, and are loaded again for each stage
  int shared_bytes = 0;

  /// `d_qk`: of the tiles; `stages`: of summaries.
  SelectPlan(const Config& config, int d_qk, int stages) {
    const auto number = [](std::int64_t value) { return static_cast<int>(value); };
    const HeadSplit split(16, number(config.heads_per_group()));
    parts = split.parts;
    heads = split.heads;
    const Registers registers(config);
    chunks = std::min(split.queries, registers.chunks);
    per_block = number(config.select_block / config.compress_stride);
    reach = number(config.compress_block / config.compress_stride) - 1;
    carry = (reach + (window % per_block == 0 ? 0 : per_block - 1) + 3) / 4 * 4;
    pitch = (window + carry + 3) / 8 * 8 + 4;  // neighbouring lanes write to different banks
    for (; chunks > 0; --chunks) {
      for (int groups = registers.warpgroups; groups > 0; --groups)
        if (fits(d_qk, stages, groups, parts)) return;
      streams = true;
      for (int groups = 2; groups > 0; --groups)
        if (fits(d_qk, stages, groups, 2)) return;
      streams = false;
    }
  }

  static int num_scored(const Config& config) {
    return static_cast<int>(config.select_count - config.init_blocks - config.local_blocks);
  }

  /// The three variants of the kernel. More warpgroups hide more latency; with fewer, threads have registers for more
  /// lists of blocks.
  struct Registers {
    int warpgroups;
    int chunks;  ///< at most
    int slots;   ///< registers of a lane for the best blocks of a query

    constexpr Registers(int groups, int most, int of_lane) : warpgroups(groups), chunks(most), slots(of_lane) {}
    explicit Registers(const Config& config)
        : Registers(num_scored(config) > 32                                                 ? long_lists
                    : HeadSplit(16, static_cast<int>(config.heads_per_group())).queries > 2 ? many_queries
                                                                                            : few_queries) {}
  };
  static const Registers few_queries, many_queries, long_lists;

  constexpr int tile_queries() const { return warpgroups * chunks * 8; }
  constexpr int q_tile_bytes(int d_qk) const { return 128 * d_qk * 2; }
  /// Floats of one warpgroup: log-sum-exps, numbers of visible summaries, sums.
  constexpr int base_floats() const { return parts * 4 * base_pitch; }
  constexpr int sums_floats() const { return base_floats() + 8 * chunks + 8 * chunks * pitch; }
  static constexpr int base_pitch = 2 * 16 + 4;

 private:
  bool fits(int d_qk, int stages, int groups, int tiles) {
    const int bytes = stages * 64 * d_qk * 2 + 1024 + groups * (tiles * q_tile_bytes(d_qk) + sums_floats() * 4);
    if (bytes > 227 * 1024 || groups * tiles > max_q_tiles) return false;
    warpgroups = groups;
    q_tiles = tiles;
    shared_bytes = bytes;
    return true;
  }
};

inline constexpr SelectPlan::Registers SelectPlan::few_queries{4, 2, 1}, SelectPlan::many_queries{3, 4, 1},
    SelectPlan::long_lists{3, 2, 4};

/// Stages of summaries of the kernel for any number of heads.
constexpr int any_heads_select_stages(int d_qk) {
  return d_qk <= 128 ? 3 : 2;
}

/// Queries of its tiles; 0 where it does not serve the layer.
inline int any_heads_select_queries(const Config& config) {
  const int row = any_heads_row(config);
  if (row < 0 || SelectPlan::num_scored(config) > SelectPlan::max_num_scored) return 0;
  return SelectPlan(config, shapes[row].d_qk, any_heads_select_stages(shapes[row].d_qk)).tile_queries();
}

}  // namespace cpnsa::cuda::sm90
