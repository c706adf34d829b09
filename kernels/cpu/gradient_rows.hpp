#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/panels.hpp"
#include "kernels/cpu/query_tile.hpp"

namespace cpnsa::cpu {

/// The rows (query, head of the group) of a query tile in the backward of a branch.
template <class A>
class GradientRows {
 public:
  static constexpr std::int64_t rows_per_tile = 128;

  explicit GradientRows(const Config& config)
      : config_(&config),
        heads_per_group_(config.heads_per_group()),
        q_stride_(padded<A>(config.head_dim_qk)),
        dout_stride_(padded<A>(config.head_dim_v)),
        q_(capacity() * q_stride_),
        dq_(capacity() * q_stride_),
        dout_(capacity() * dout_stride_),
        log_sum_exp_(capacity()),
        delta_(capacity()) {}

  std::int64_t queries() const { return queries_per_tile(*config_, rows_per_tile); }
  std::int64_t heads_per_group() const { return heads_per_group_; }

  /// Starts a tile: loads its rows of q [rows, H, d_qk] and of `gradient`, and clears dq.
  template <class T>
  void start(const QueryTile& tile, const T* q, const BranchGradient& gradient) {
    const auto per_head = [&](const void* tensor) {
      return heads_of_group(static_cast<const A*>(tensor), *config_, tile.group, 1);
    };
    const auto weights = per_head(gradient.weights), deltas = per_head(gradient.deltas),
               log_sum_exps = per_head(gradient.log_sum_exp);
    for (std::int64_t i = 0; i < tile.count; ++i) {
      std::copy_n(deltas.row(tile.row(i)), heads_per_group_, delta_.data() + i * heads_per_group_);
      std::copy_n(log_sum_exps.row(tile.row(i)), heads_per_group_, log_sum_exp_.data() + i * heads_per_group_);
    }
    finite_ = load_queries(*config_, tile, q, q_.data(), q_stride_);
    const auto weight = [&](std::int64_t row) {
      return weights.row(tile.row(row / heads_per_group_))[row % heads_per_group_];
    };
    finite_ &= load_scaled_rows(*config_, tile, static_cast<const T*>(gradient.dout), config_->head_dim_v, weight,
                                dout_.data(), dout_stride_);
    std::fill_n(dq_.data(), tile.count * heads_per_group_ * q_stride_, A{0});
  }

  /// Copies the given queries of another tile, in order.
  void gather(const GradientRows& from, const std::vector<std::int64_t>& queries) {
    finite_ = from.finite_;
    for (std::size_t i = 0; i < queries.size(); ++i) {
      const std::int64_t source = queries[i] * heads_per_group_, row = static_cast<std::int64_t>(i) * heads_per_group_;
      std::copy_n(from.q(source), heads_per_group_ * q_stride_, q_.data() + row * q_stride_);
      std::copy_n(from.dq_.data() + source * q_stride_, heads_per_group_ * q_stride_, dq(row));
      std::copy_n(from.dout(source), heads_per_group_ * dout_stride_, dout_.data() + row * dout_stride_);
      std::copy_n(&from.log_sum_exp_[source], heads_per_group_, &log_sum_exp_[row]);
      std::copy_n(&from.delta_[source], heads_per_group_, &delta_[row]);
    }
  }

  /// Copies dq of the gathered queries back to their tile.
  void scatter(GradientRows& to, const std::vector<std::int64_t>& queries) const {
    for (std::size_t i = 0; i < queries.size(); ++i)
      std::copy_n(dq_.data() + static_cast<std::int64_t>(i) * heads_per_group_ * q_stride_,
                  heads_per_group_ * q_stride_, to.dq(queries[i] * heads_per_group_));
  }

  /// dq_tensor [rows, H, d_qk] += the dq of this tile times the softmax scale.
  void finish(const QueryTile& tile, A* dq_tensor) const {
    const std::int64_t d_qk = config_->head_dim_qk;
    const A scale = static_cast<A>(config_->scale());
    const auto destination = heads_of_group(dq_tensor, *config_, tile.group, d_qk);
    for (std::int64_t i = 0; i < tile.count; ++i)
      for (std::int64_t head = 0; head < heads_per_group_; ++head) {
        const A* const source = dq_.data() + (i * heads_per_group_ + head) * q_stride_;
        A* const row = destination.row(tile.row(i)) + head * d_qk;
        for (std::int64_t c = 0; c < d_qk; ++c) row[c] += scale * source[c];
      }
  }

  bool finite() const { return finite_; }  ///< whether every element of q and dout is finite
  std::int64_t q_stride() const { return q_stride_; }
  std::int64_t dout_stride() const { return dout_stride_; }
  const A* q(std::int64_t row) const { return q_.data() + row * q_stride_; }           ///< [d_qk], times the scale
  const A* dout(std::int64_t row) const { return dout_.data() + row * dout_stride_; }  ///< [d_v], times the weight
  A* dq(std::int64_t row) { return dq_.data() + row * q_stride_; }                     ///< [d_qk], without the scale
  A log_sum_exp(std::int64_t row) const { return log_sum_exp_[row]; }
  A delta(std::int64_t row) const { return delta_[row]; }
  std::int64_t capacity() const { return queries() * heads_per_group_; }

 private:
  const Config* config_;
  std::int64_t heads_per_group_;
  std::int64_t q_stride_;
  std::int64_t dout_stride_;
  Buffer<A> q_;
  Buffer<A> dq_;
  Buffer<A> dout_;
  Buffer<A> log_sum_exp_;
  Buffer<A> delta_;
  bool finite_ = true;
};

}  // namespace cpnsa::cpu
