#pragma once

#include <cstdint>
#include <vector>

#include "tests/support/problem.hpp"

namespace cpnsa::test {

/// How the oracle computes.
struct Precision {
  DType dtype;  ///< of the layer under test
  bool plain;   ///< true: as a plain implementation in that type, float arithmetic and every stored tensor rounded;
                ///< false: the truth, wider than anything the library does in that type
};

/// What a layer computes on the way to its output, over the whole packed sequence.
struct OracleForward {
  Values out;                          ///< [T, H, d_v]
  Values o_cmp, o_slc, o_win;          ///< [T, H, d_v]
  Values lse_cmp, lse_slc, lse_win;    ///< [T, H]
  Values summaries_k;                  ///< [C of all documents, G, d_qk]
  Values summaries_v;                  ///< [C of all documents, G, d_v]
  std::vector<Values> scores;          ///< [T, G][causal blocks of t]: S
  std::vector<std::int32_t> selected;  ///< [T, G, n]
  Values margin;                       ///< [T, G]: of the selection from `scores`
};

/// A deliberately naive implementation of the algorithm for one process: loops over documents, tokens and heads.
/// The selected branch reads `selected` where given, so that a low-precision result is judged by its own selection.
OracleForward oracle_forward(const Problem& problem, Precision precision,
                             const std::vector<std::int32_t>* selected = nullptr);

/// Gradients with respect to the summaries, [C of all documents, G, d_qk] and [.., d_v].
struct SummaryGradients {
  Values k, v;
};

/// Gradients of sum(out * dout) with that selection held fixed.
Tensors oracle_backward(const Problem& problem, Precision precision, const std::vector<std::int32_t>& selected,
                        SummaryGradients* summaries = nullptr);

}  // namespace cpnsa::test
