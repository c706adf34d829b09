#include <cstring>
#include <vector>

#include "kernels/cpu/decode_schedule.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/summary_tile.hpp"

namespace cpnsa::cpu {
namespace {

/// Consecutive summaries of a sequence that the step completes.
struct CompletedRun {
  std::int64_t slot;
  std::int64_t page;   ///< token page that brings them to this rank; -1 if the rank holds all pages
  std::int64_t begin;  ///< number x of the first one
  std::int64_t end;
  std::int64_t row;  ///< of the first one, among this rank's summaries of the sequence
};

enum class Which { keys, values };

/// At most summaries_per_tile summaries a run, so that the gathered rows stay few.
void append_run(std::vector<CompletedRun>& runs, CompletedRun run) {
  for (; run.begin < run.end; run.begin += summaries_per_tile, run.row += summaries_per_tile) {
    runs.push_back(run);
    runs.back().end = std::min(run.end, run.begin + summaries_per_tile);
  }
}

std::vector<CompletedRun> completed_runs(const DecodeCompress& a, Which which) {
  const std::int64_t s = a.config->compress_stride, strides = a.summaries.strides;
  std::vector<CompletedRun> runs;
  for (const DecodeSequence& sequence : sequences_of(a)) {
    const ColumnRange completed{std::max(trailing_strides(*a.config), sequence.position / s),
                                (sequence.position + sequence.rows) / s};
    if (completed.empty()) continue;
    if (a.summaries.ranks == 1) {
      append_run(runs, {sequence.slot, -1, completed.begin, completed.end, completed.begin});
      continue;
    }
    const std::int64_t repeated = which == Which::keys ? a.summaries.repeated : 0;
    for (std::int64_t page = std::max<std::int64_t>(0, completed.begin / strides - 1); page <= completed.end / strides;
         ++page) {
      if (page % a.summaries.ranks != a.summaries.rank) continue;
      const ColumnRange brought = completed & ColumnRange{page * strides, (page + 1) * strides + repeated};
      append_run(runs, {sequence.slot, page, brought.begin, brought.end,
                        first_summary_row(a.summaries, page) + brought.begin - page * strides});
    }
  }
  return runs;
}

/// The row of the pool that holds token `token` for the summaries that `page` brings; -1 if the rank does not hold it.
std::int64_t pool_row(const PagedRows& rows, std::int64_t rows_per_page, std::int64_t slot, std::int64_t page,
                      std::int64_t token) {
  const std::int64_t holder = page < 0 ? token / rows.page : page;
  const std::int64_t id = held_page(rows, slot, holder);
  std::int64_t row = token - holder * rows.page;
  if (row < 0) {
    row += rows.edge + rows.page;
  } else if (row >= rows.page) {
    row += rows.edge;
  }
  return id < 0 || row < 0 || row >= rows_per_page ? -1 : id * rows_per_page + row;
}

/// Compresses keys or values: gathers the tokens of completed summaries, runs Compress on them, and writes its results
/// to the pages.
class Compressor {
 public:
  Compressor(const DecodeCompress& a, Which which) : a_(a), which_(which) {
    const Config& config = *a.config;
    const bool keys = which == Which::keys;
    static_cast<OpContext&>(compress_) = a;
    compress_.dim = keys ? config.head_dim_qk : config.head_dim_v;
    compress_.hidden = keys ? config.compress_hidden_k : config.compress_hidden_v;
    compress_.parameters = keys ? a.k_parameters : a.v_parameters;
    row_bytes_ = static_cast<std::size_t>(config.num_kv_heads * compress_.dim) * size_of(a.dtype);
  }

  void run() {
    const std::vector<CompletedRun> all = completed_runs(a_, which_);
    for (std::size_t begin = 0, end = 0; begin < all.size(); begin = end) {
      std::int64_t count = 0;
      while (end < all.size() && (end == begin || count + length(all[end]) <= summaries_per_tile))
        count += length(all[end++]);
      compress(std::span(all).subspan(begin, end - begin), count);
    }
  }

 private:
  static std::int64_t length(const CompletedRun& run) { return run.end - run.begin; }

  void compress(std::span<const CompletedRun> completed, std::int64_t count) {
    gathered_.clear();
    std::vector<SummaryRun> runs;
    std::int64_t summary = 0;
    for (const CompletedRun& run : completed) {
      const auto row = static_cast<std::int64_t>(gathered_.size() / row_bytes_);
      runs.push_back({row, summary, length(run)});
      gather(run);
      summary += length(run);
    }
    results_.resize(static_cast<std::size_t>(count) * row_bytes_);
    compress_.input = gathered_.data();
    compress_.summaries = results_.data();
    compress_.runs = {runs.data(), runs.data(), static_cast<std::int64_t>(runs.size())};
    run_op(compress_);
    const std::byte* result = results_.data();
    for (const CompletedRun& run : completed) {
      scatter(run, result);
      result += static_cast<std::size_t>(length(run)) * row_bytes_;
    }
  }

  void gather(const CompletedRun& run) {
    const std::int64_t s = a_.config->compress_stride;
    const PagedRows& rows = a_.cmp;
    const bool keys = which_ == Which::keys;
    const auto* const pool = static_cast<const std::byte*>(keys ? rows.k : rows.v);
    for (std::int64_t token = (run.begin + 1) * s - a_.config->compress_block; token < run.end * s; ++token) {
      const std::int64_t row = pool_row(rows, keys ? rows.k_rows() : rows.v_rows(), run.slot, run.page, token);
      gathered_.resize(gathered_.size() + row_bytes_);  // a row that is not held stays 0
      if (row >= 0)
        std::memcpy(gathered_.data() + gathered_.size() - row_bytes_, pool + static_cast<std::size_t>(row) * row_bytes_,
                    row_bytes_);
    }
  }

  void scatter(const CompletedRun& run, const std::byte* results) const {
    auto* const pool = static_cast<std::byte*>(which_ == Which::keys ? a_.summaries.k : a_.summaries.v);
    for_each_summary_run(a_.summaries, run.slot, run.row, length(run), run.begin, [&](const PageRun& target) {
      std::memcpy(pool + static_cast<std::size_t>(target.row) * row_bytes_,
                  results + static_cast<std::size_t>(target.begin - run.begin) * row_bytes_,
                  static_cast<std::size_t>(target.end - target.begin) * row_bytes_);
    });
  }

  const DecodeCompress& a_;
  Which which_;
  Compress compress_{};
  std::size_t row_bytes_ = 0;
  std::vector<std::byte> gathered_;
  std::vector<std::byte> results_;
};

}  // namespace

template <>
void run_op(const DecodeCompress& a) {
  Compressor(a, Which::keys).run();
  Compressor(a, Which::values).run();
}

}  // namespace cpnsa::cpu
