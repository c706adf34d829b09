#pragma once

// The schedule that PrepareDecode writes on the CPU, and the way from positions of a sequence to rows of pages.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cpnsa/decode_ops.hpp"
#include "kernels/cpu/panels.hpp"
#include "kernels/cpu/query_tile.hpp"

namespace cpnsa::cpu {

/// One sequence of a step, checked: its rows lie in the step's tensors and its positions below max_length.
struct DecodeSequence {
  std::int64_t slot;
  std::int64_t row;       ///< first row of the step's tensors
  std::int64_t rows;      ///< tokens that the step appends, at least 1
  std::int64_t position;  ///< of the first of them
};

/// The schedule: `count` sequences, those without rows left out.
struct DecodeSchedule {
  std::int64_t count;

  static constexpr std::size_t bytes(std::int64_t max_sequences) {
    return sizeof(DecodeSchedule) + static_cast<std::size_t>(max_sequences) * sizeof(DecodeSequence);
  }
  DecodeSequence* items() { return reinterpret_cast<DecodeSequence*>(this + 1); }
  const DecodeSequence* items() const { return reinterpret_cast<const DecodeSequence*>(this + 1); }
};
static_assert(sizeof(DecodeSchedule) % alignof(DecodeSequence) == 0);

inline std::span<const DecodeSequence> sequences_of(const DecodeContext& a) {
  const auto* const schedule = static_cast<const DecodeSchedule*>(a.schedule);
  return {schedule->items(), static_cast<std::size_t>(schedule->count)};
}

/// Positions [begin, end) of a sequence, tokens or summaries, that are consecutive rows of one page.
struct PageRun {
  std::int64_t begin;
  std::int64_t end;
  std::int64_t row;  ///< row of the pool's keys, in units of rows: page id * rows of a page + row in the page
  std::int64_t v_row;
};

/// The id of the page in a column of a sequence's row of a table; -1 if the rank does not hold it.
template <class Paged>
std::int64_t page_id(const Paged& paged, std::int64_t slot, std::int64_t column) {
  if (column < 0 || column >= paged.columns) return -1;
  const std::int64_t id = paged.table[slot * paged.columns + column];
  return id < paged.pages ? std::max<std::int64_t>(id, -1) : -1;
}

/// The id of token page `page` of a sequence; -1 if this rank does not hold it.
inline std::int64_t held_page(const PagedRows& rows, std::int64_t slot, std::int64_t page) {
  return page % rows.ranks == rows.rank ? page_id(rows, slot, page / rows.ranks) : -1;
}

/// Calls function(PageRun) for the tokens [begin, end) of a sequence that this rank holds, ascending.
template <class Function>
void for_each_held_run(const PagedRows& rows, std::int64_t slot, std::int64_t begin, std::int64_t end,
                       Function&& function) {
  while (begin < end) {
    const std::int64_t page = begin / rows.page, stop = std::min(end, (page + 1) * rows.page);
    const std::int64_t id = held_page(rows, slot, page), offset = begin - page * rows.page;
    if (id >= 0) function(PageRun{begin, stop, id * rows.k_rows() + offset, id * rows.v_rows() + offset});
    begin = stop;
  }
}

/// Calls function(PageRun) for the rows [first, first + count) of this rank's summaries of a sequence; `begin` is the
/// number x of the first one.
template <class Function>
void for_each_summary_run(const PagedSummaries& summaries, std::int64_t slot, std::int64_t first, std::int64_t count,
                          std::int64_t begin, Function&& function) {
  while (count > 0) {
    const std::int64_t column = first / summaries.page, offset = first % summaries.page;
    const std::int64_t length = std::min(count, summaries.page - offset);
    const std::int64_t id = page_id(summaries, slot, column);
    const std::int64_t row = id * summaries.page + offset;
    if (id >= 0) function(PageRun{begin, begin + length, row, row});
    first += length, begin += length, count -= length;
  }
}

/// Row, among this rank's summaries of a sequence, of the first summary that token page `page` brings.
inline std::int64_t first_summary_row(const PagedSummaries& summaries, std::int64_t page) {
  return page / summaries.ranks * (summaries.strides + summaries.repeated);
}

/// Calls function(PageRun) for the summaries x in [begin, end) of a sequence that this rank holds, ascending, repeated
/// ones left out.
template <class Function>
void for_each_own_summary_run(const PagedSummaries& summaries, std::int64_t slot, std::int64_t begin, std::int64_t end,
                              Function&& function) {
  if (summaries.ranks == 1 && summaries.repeated == 0) {
    for_each_summary_run(summaries, slot, begin, end - begin, begin, function);
    return;
  }
  while (begin < end) {
    const std::int64_t page = begin / summaries.strides, stop = std::min(end, (page + 1) * summaries.strides);
    if (page % summaries.ranks == summaries.rank)
      for_each_summary_run(summaries, slot, first_summary_row(summaries, page) + begin - page * summaries.strides,
                           stop - begin, begin, function);
    begin = stop;
  }
}

/// l / s - 1: summary i ends with stride i + e.
inline std::int64_t trailing_strides(const Config& config) {
  return config.compress_block / config.compress_stride - 1;
}

/// Calls function(sequence, QueryTile) for all rows of a step, one KV head after another.
template <class Function>
void for_each_decode_tile(const DecodeContext& a, std::int64_t queries, Function&& function) {
  for (std::int64_t group = 0; group < a.config->num_kv_heads; ++group)
    for (const DecodeSequence& sequence : sequences_of(a)) {
      Segment segment{};
      segment.row = sequence.row;
      segment.rows = sequence.rows;
      segment.position = sequence.position;
      for (std::int64_t first = 0; first < sequence.rows; first += queries)
        function(sequence, QueryTile{&segment, group, first, std::min(queries, sequence.rows - first)});
    }
}

}  // namespace cpnsa::cpu
