#pragma once

#include "cpnsa/config.hpp"

namespace cpnsa::cuda {

/// The summaries that a token sees. Plain C++, for kernels and for the code that plans them.
struct SummaryRule {
  int length;  ///< l
  int stride;  ///< s

  explicit SummaryRule(const Config& config)
      : length(static_cast<int>(config.compress_block)), stride(static_cast<int>(config.compress_stride)) {}

  /// Summaries 0, 1, ..., result - 1 end at or before the token at `position`.
  constexpr int visible(int position) const { return position + 1 < length ? 0 : (position + 1 - length) / stride + 1; }
};

}  // namespace cpnsa::cuda
