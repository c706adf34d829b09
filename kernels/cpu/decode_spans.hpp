#pragma once

#include <vector>

#include "kernels/cpu/decode_schedule.hpp"
#include "kernels/cpu/panels.hpp"

namespace cpnsa::cpu {

/// A key tile that is loaded from pages: the columns that this rank holds, as maximal spans. With every page held there
/// is one span, and a row's result has the same bits as that of the forward's ops, which have no pages.
template <class T>
class KeySpans {
 public:
  using A = Arithmetic<T>;

  explicit KeySpans(const Config& config) : config_(config), keys_(config.head_dim_qk), values_(config.head_dim_v) {}

  /// Starts the tile whose column 0 is position `first`, for one KV head of pools k and v.
  void start(std::int64_t group, std::int64_t first, const void* k, const void* v) {
    first_ = first;
    k_ = rows_of_group(static_cast<const T*>(k), config_, group, config_.head_dim_qk);
    v_ = rows_of_group(static_cast<const T*>(v), config_, group, config_.head_dim_v);
    spans_.clear();
    values_.start();
  }

  void load(const PageRun& run) {
    const ColumnRange columns{run.begin - first_, run.end - first_};
    keys_.load(k_.from(run.row), columns);
    values_.load(v_.from(run.v_row), columns);
    if (!spans_.empty() && spans_.back().end == columns.begin) {
      spans_.back().end = columns.end;
    } else {
      spans_.push_back(columns);
    }
  }

  template <class Function>
  void for_each(Function&& function) const {
    for (const ColumnRange& span : spans_) function(span);
  }

  const ColumnPanel<A>& keys() const { return keys_; }
  const RowPanel<A>& values() const { return values_; }

 private:
  const Config& config_;
  std::int64_t first_ = 0;
  Strided<const T> k_;
  Strided<const T> v_;
  ColumnPanel<A> keys_;
  RowPanel<A> values_;
  std::vector<ColumnRange> spans_;
};

}  // namespace cpnsa::cpu
