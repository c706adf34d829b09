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

/// What every branch is given.
template <class T>
struct AttentionProblem {
  const Segment* segments;
  const QueryTile* tiles;
  const T* q;           ///< [rows, heads, dk]
  T* out;               ///< [rows, heads, dv]
  float* log_sum_exp;   ///< [rows, heads], natural logarithm
  int heads;            ///< H
  int groups;           ///< G
  int heads_per_group;  ///< R
  int dk;
  int dv;
  float scale_log2;  ///< softmax scale times log2(e)
};

/// What every branch's backward is given beside its keys.
template <class T>
struct GradientProblem : AttentionProblem<T> {
  const T* dout;         ///< [rows, heads, dv]
  const float* weights;  ///< [rows, heads]
  const float* deltas;   ///< [rows, heads]
  float* dq;             ///< [rows, heads, dk], "+="
  float scale;           ///< of the softmax; log_sum_exp is the forward's
};

}  // namespace cpnsa::cuda
