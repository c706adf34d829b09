#pragma once

// The arguments that the attention kernels of every branch share.

#include <cstdint>

#include "kernels/cuda/schedule/segment_schedule.hpp"

namespace cpnsa::cuda {

/// Rows [begin, end) of a key tile.
struct KeyRange {
  int begin;
  int end;
};

/// Arguments of the attention kernels of every branch.
template <class T>
struct AttentionProblem {
  const Segment* segments;
  const QueryTile* tiles;
  const T* q;           ///< [rows, H, d_qk]
  T* out;               ///< [rows, H, d_v]
  float* log_sum_exp;   ///< [rows, H], natural logarithm
  int num_q_heads;      ///< H
  int num_kv_heads;     ///< G
  int heads_per_group;  ///< R
  int d_qk;
  int d_v;
  float scale_log2;  ///< softmax scale times log2(e)
};

/// Arguments of the backward kernels of every branch, without the keys.
template <class T>
struct GradientProblem : AttentionProblem<T> {
  const T* dout;         ///< [rows, H, d_v]
  const float* weights;  ///< [rows, H]
  const float* deltas;   ///< [rows, H]
  float* dq;             ///< [rows, H, d_qk], "+="
  float scale;           ///< of the softmax; log_sum_exp is the forward's
};

}  // namespace cpnsa::cuda
