#pragma once

// The summaries that a step completes, and where their tokens and they themselves lie.

#include <cstdint>

#include "kernels/cuda/decode/pages.hpp"
#include "kernels/cuda/decode/schedule.hpp"

namespace cpnsa::cuda::decode {

/// Keys or values.
enum class Side { keys, values };

/// A place for a completed summary. With pages dealt to several ranks a summary has two: in its own token page and,
/// keys alone, repeated in the page before.
struct CompletedPlace {
  int slot;
  int token_page;  ///< that brings it; -1: this rank holds all summaries
  int x;
  PageRow at;  ///< where it is written; -1: nowhere
};

/// The tensors of one side.
template <class T>
struct CompletedSide {
  const T* input;  ///< [pages, rows, G, d]
  T* summaries;    ///< [pages, page, G, d]
  int input_rows;  ///< of a page
  int dim;
};

template <class T>
struct CompletedSummaries {
  StepSchedule schedule;
  TokenPages tokens;
  SummaryPages pages;
  int stride;  ///< s
  int length;  ///< l
  int num_kv_heads;
  CompletedSide<T> sides[2];

  CompletedSummaries(const DecodeCompress& a)
      : schedule(a),
        tokens(a.cmp),
        pages(a.summaries),
        stride(static_cast<int>(a.config->compress_stride)),
        length(static_cast<int>(a.config->compress_block)),
        num_kv_heads(static_cast<int>(a.config->num_kv_heads)),
        sides{{static_cast<const T*>(a.cmp.k), static_cast<T*>(a.summaries.k), static_cast<int>(a.cmp.k_rows()),
               static_cast<int>(a.config->head_dim_qk)},
              {static_cast<const T*>(a.cmp.v), static_cast<T*>(a.summaries.v), static_cast<int>(a.cmp.v_rows()),
               static_cast<int>(a.config->head_dim_v)}} {}

  __host__ __device__ int places_per_summary() const { return pages.ranks == 1 ? 1 : 2; }
  __device__ int places() const { return schedule.counts->completed * places_per_summary(); }

  __device__ CompletedPlace place(int index, Side side) const {
    CompletedPlace found{0, -1, 0, {-1, 0}};
    if (index >= places()) return found;
    const Completed summary = schedule.completed[index / places_per_summary()];
    found.slot = summary.slot, found.x = summary.x;
    if (pages.ranks == 1) {
      found.at = pages.find(summary.slot, 0, summary.x);
      return found;
    }
    const bool repeated = index % 2 == 1;
    found.token_page = summary.x / pages.strides - (repeated ? 1 : 0);
    const bool brought =
        found.token_page >= 0 && found.token_page % pages.ranks == pages.rank &&
        (!repeated || (side == Side::keys && summary.x < (found.token_page + 1) * pages.strides + pages.repeated));
    if (brought) found.at = pages.find(summary.slot, found.token_page, summary.x);
    return found;
  }

  /// The rows of token `index` of a summary, for all KV heads; null if the rank does not hold it.
  __device__ const T* input_row(const CompletedPlace& place, Side side, int index) const {
    const CompletedSide<T>& own = sides[static_cast<int>(side)];
    const int token = (place.x + 1) * stride - length + index;
    const int holder = place.token_page < 0 ? token / tokens.page : place.token_page;
    const int id = tokens.held(place.slot, holder);
    int row = token - holder * tokens.page;
    if (row < 0) {
      row += tokens.edge + tokens.page;
    } else if (row >= tokens.page) {
      row += tokens.edge;
    }
    if (id < 0 || row < 0 || row >= own.input_rows) return nullptr;
    return own.input + (static_cast<std::int64_t>(id) * own.input_rows + row) * num_kv_heads * own.dim;
  }

  __device__ T* summary_row(const CompletedPlace& place, Side side) const {
    const CompletedSide<T>& own = sides[static_cast<int>(side)];
    return own.summaries +
           (static_cast<std::int64_t>(place.at.id) * pages.page + place.at.row) * num_kv_heads * own.dim;
  }
};

}  // namespace cpnsa::cuda::decode
