#pragma once

#include <cstdint>
#include <vector>

#include "tests/support/problem.hpp"

namespace cpnsa::test {

/// The arithmetic of the oracle.
struct Precision {
  DType dtype;  ///< of the layer under test
  bool plain;   ///< true: as a plain implementation in that type: float arithmetic, every stored tensor rounded;
                ///< false: the truth, in wider arithmetic than the library's for that type
};

/// Intermediate results and output of a layer over the whole packed sequence.
struct OracleForward {
  Values out;                          ///< [T, H, d_v]
  Values o_cmp, o_slc, o_win;          ///< [T, H, d_v]
  Values lse_cmp, lse_slc, lse_win;    ///< [T, H]
  Values summaries_k;                  ///< [C of all documents, G, d_qk]
  Values summaries_v;                  ///< [C of all documents, G, d_v]
  std::vector<Values> scores;          ///< [T, G][causal blocks of t]: S
  std::vector<std::int32_t> selected;  ///< [T, G, n]
  Values margin;                       ///< [T, G]: lowest selected score minus highest score left out
};

/// A deliberately naive implementation of the algorithm for one process: loops over documents, tokens and heads. If
/// `selected` is given, the selected branch uses it, so that a low-precision result is judged by its own selection.
OracleForward oracle_forward(const Problem& problem, Precision precision,
                             const std::vector<std::int32_t>* selected = nullptr);

/// Gradients with respect to the summaries, k [C of all documents, G, d_qk] and v [C of all documents, G, d_v].
struct SummaryGradients {
  Values k, v;
};

/// Gradients of sum(out * dout) with the selection `selected` held fixed.
Tensors oracle_backward(const Problem& problem, Precision precision, const std::vector<std::int32_t>& selected,
                        SummaryGradients* summaries = nullptr);

}  // namespace cpnsa::test
