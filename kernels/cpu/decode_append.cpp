#include <array>
#include <cstring>

#include "kernels/cpu/decode_schedule.hpp"
#include "kernels/cpu/run_op.hpp"

namespace cpnsa::cpu {
namespace {

/// Copies a run of consecutive rows of the step's keys or values to consecutive rows of a pool.
void copy_rows(const void* source, std::int64_t row, void* pool, std::int64_t pool_row, std::int64_t count,
               std::size_t row_bytes) {
  std::memcpy(static_cast<std::byte*>(pool) + static_cast<std::size_t>(pool_row) * row_bytes,
              static_cast<const std::byte*>(source) + static_cast<std::size_t>(row) * row_bytes,
              static_cast<std::size_t>(count) * row_bytes);
}

class Append {
 public:
  Append(const DecodeAppend& a, const PagedRows& pages, const void* k, const void* v)
      : sequences_(sequences_of(a)), pages_(pages), k_(k), v_(v) {
    const auto groups = static_cast<std::size_t>(a.config->num_kv_heads) * size_of(a.dtype);
    k_bytes_ = groups * static_cast<std::size_t>(a.config->head_dim_qk);
    v_bytes_ = groups * static_cast<std::size_t>(a.config->head_dim_v);
  }

  void keys() const {
    each([&](const DecodeSequence& s, const PageRun& run) {
      copy_rows(k_, s.row + run.begin - s.position, pages_.k, run.row, run.end - run.begin, k_bytes_);
    });
  }
  void values() const {
    each([&](const DecodeSequence& s, const PageRun& run) {
      if (run.v_row >= 0)
        copy_rows(v_, s.row + run.begin - s.position, pages_.v, run.v_row, run.end - run.begin, v_bytes_);
    });
  }

 private:
  template <class Function>
  void each(Function&& function) const {
    for (const DecodeSequence& s : sequences_) {
      const std::int64_t begin = s.position, end = s.position + s.rows;
      const auto copy = [&](const PageRun& run) { function(s, run); };
      for_each_held_run(pages_, s.slot, begin, end, copy);
      if (pages_.edge > 0) for_each_edge_run(s.slot, begin, end, copy);
    }
  }

  /// The tokens [begin, end) that are edges of pages of this rank: those before a page, and those after it, which have
  /// no row of values.
  template <class Function>
  void for_each_edge_run(std::int64_t slot, std::int64_t begin, std::int64_t end, Function&& function) const {
    for (std::int64_t page = std::max<std::int64_t>(0, begin / pages_.page - 1); page <= end / pages_.page + 1;
         ++page) {
      const std::int64_t id = held_page(pages_, slot, page);
      if (id < 0) continue;
      const auto copy = [&](std::int64_t edge_begin, std::int64_t edge_row, bool has_values) {
        const ColumnRange seen = ColumnRange{begin, end} & ColumnRange{edge_begin, edge_begin + pages_.edge};
        if (seen.empty() || seen.begin < 0) return;
        const std::int64_t row = edge_row + seen.begin - edge_begin;
        function(
            PageRun{seen.begin, seen.end, id * pages_.k_rows() + row, has_values ? id * pages_.v_rows() + row : -1});
      };
      copy(page * pages_.page - pages_.edge, pages_.page, true);
      copy((page + 1) * pages_.page, pages_.page + pages_.edge, false);
    }
  }

  std::span<const DecodeSequence> sequences_;
  const PagedRows& pages_;
  const void* k_;
  const void* v_;
  std::size_t k_bytes_, v_bytes_;
};

}  // namespace

template <>
void run_op(const DecodeAppend& a) {
  const std::array<Append, 3> branches{Append(a, a.cmp, a.k_cmp, a.v_cmp), Append(a, a.slc, a.k_slc, a.v_slc),
                                       Append(a, a.win, a.k_win, a.v_win)};
  branches[0].keys(), branches[0].values();
  if (a.slc.k != a.cmp.k) branches[1].keys();
  if (a.slc.v != a.cmp.v) branches[1].values();
  if (a.win.k != a.cmp.k && a.win.k != a.slc.k) branches[2].keys();
  if (a.win.v != a.cmp.v && a.win.v != a.slc.v) branches[2].values();
}

}  // namespace cpnsa::cpu
