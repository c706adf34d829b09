#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "tests/support/oracle.hpp"

namespace cpnsa::test {

/// ||a - b|| / ||b||, or ||a|| if b is zero; NaN if either is not finite.
double relative_error(const Values& a, const Values& b);

/// Passes if ||found - expected|| <= tolerance ||expected|| + floor; a NaN never passes.
testing::AssertionResult within(const std::string& name, const Values& found, const Values& expected, double tolerance,
                                double floor = 0);

/// The norm of all tensors together. Rounding errors of gradients whose terms cancel are compared with it, because the
/// truth of some is exactly zero: adding a constant to every compressed key changes no softmax, so b2 and the pos of a
/// linear compressor have none.
double norm_of(const Tensors& tensors);

/// The relative error that a result may have: `factor` times that of a plain implementation in the layer's type, but at
/// least a few roundings of the accumulating type and two of the layer's, because the plain error may be small by
/// chance in small tensors. A result stored in type `stored` may have half a unit in the last place more.
double derived_tolerance(double plain_error, double factor, DType dtype, DType stored);

inline constexpr double forward_factor = 2;
inline constexpr double backward_factor = 3;

/// The expected results of a layer, computed once and compared with the results of many settings.
class Truth {
 public:
  /// `selected` is the selection of a layer run in `dtype`; the selected branch is judged by it.
  Truth(Problem problem, DType dtype, std::vector<std::int32_t> selected);

  /// Passes if the selection is valid: the right number of blocks, ascending, causal, with the forced ones; and if no
  /// block left out has a score above a selected one's by more than the error of a plain implementation.
  testing::AssertionResult selection_is_right() const;
  testing::AssertionResult out_agrees(const Values& out) const;
  /// Compares the tensors of `found` that are not empty. dq, dk, dv and dgate are stored in the type `of_rows`,
  /// gradients of parameters in `of_parameters`.
  testing::AssertionResult gradients_agree(const Tensors& found, DType of_rows, DType of_parameters) const;
  testing::AssertionResult gradients_agree(const Tensors& found) const;

  const OracleForward& forward() const { return truth_; }

 private:
  Problem problem_;
  DType dtype_;
  std::vector<std::int32_t> selected_;
  OracleForward truth_, plain_;
  mutable std::optional<Tensors> gradients_, plain_gradients_;  // computed when first compared
};

}  // namespace cpnsa::test
