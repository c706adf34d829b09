#pragma once

// How kernels find rows in pages.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cpnsa/decode_ops.hpp"

namespace cpnsa::cuda::decode {

/// A row of a pool: page `id` (-1: the rank does not hold it), row `row` of the page.
struct PageRow {
  int id;
  int row;
};

/// The part of PagedRows and PagedSummaries that finds pages.
struct PageTable {
  const std::int32_t* table;
  std::int64_t columns;
  int pages;
  int page;  ///< rows of a page, edges left out
  int rank;
  int ranks;

  template <class Paged>
  explicit PageTable(const Paged& paged)
      : table(paged.table),
        columns(paged.columns),
        pages(static_cast<int>(paged.pages)),
        page(static_cast<int>(paged.page)),
        rank(static_cast<int>(paged.rank)),
        ranks(static_cast<int>(paged.ranks)) {}

  /// The id in a column of a sequence's row of the table; -1 if the rank does not hold such a page.
  __device__ int id(int slot, int column) const {
    if (column < 0 || column >= columns) return -1;
    const int found = table[slot * columns + column];
    return found >= 0 && found < pages ? found : -1;
  }
};

/// Tokens in pages.
struct TokenPages : PageTable {
  int edge;
  int k_rows;  ///< of a page of keys, edges included
  int v_rows;

  explicit TokenPages(const PagedRows& rows)
      : PageTable(rows),
        edge(static_cast<int>(rows.edge)),
        k_rows(static_cast<int>(rows.k_rows())),
        v_rows(static_cast<int>(rows.v_rows())) {}

  /// The id of a sequence's token page; -1 if the rank does not hold it.
  __device__ int held(int slot, int token_page) const {
    return token_page >= 0 && token_page % ranks == rank ? id(slot, token_page / ranks) : -1;
  }
  __device__ PageRow find(int slot, int token) const { return {held(slot, token / page), token % page}; }
};

/// Summaries in pages.
struct SummaryPages : PageTable {
  int strides;   ///< of a token page
  int repeated;  ///< summaries that follow those of a token page

  explicit SummaryPages(const PagedSummaries& summaries)
      : PageTable(summaries),
        strides(static_cast<int>(summaries.strides)),
        repeated(static_cast<int>(summaries.repeated)) {}

  __device__ PageRow find_row(int slot, int row) const { return {id(slot, row / page), row % page}; }
  /// Summary x, as token page `token_page` brings it (any page if one rank holds all).
  __device__ PageRow find(int slot, int token_page, int x) const {
    return find_row(slot, ranks == 1 ? x : token_page / ranks * (strides + repeated) + x - token_page * strides);
  }

  // The summaries that the rank holds, repeated ones left out, have consecutive numbers y, ascending with x.

  __device__ PageRow find_own(int slot, int y) const {
    return find_row(slot, ranks == 1 ? y : y + y / strides * repeated);
  }
  /// The summaries that the rank holds among those below x.
  __device__ int own_before(int x) const {
    if (ranks == 1) return x;
    const int token_page = x / strides, full = (token_page + ranks - 1 - rank) / ranks;  // pages of the rank before it
    return full * strides + (token_page % ranks == rank ? x % strides : 0);
  }
};

}  // namespace cpnsa::cuda::decode
