#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "tests/support/oracle.hpp"

namespace cpnsa::test {

/// ||a - b|| / ||b||, or ||a|| where b is zero; NaN where either is not finite.
double relative_error(const Values& a, const Values& b);

/// Passes when ||found - expected|| <= tolerance ||expected|| + floor; a NaN never passes.
testing::AssertionResult within(const std::string& name, const Values& found, const Values& expected, double tolerance,
                                double floor = 0);

/// Of all tensors together. Rounding errors of a gradient that cancels are to be measured against it: the truth of some
/// is exactly zero (a shift of every compressed key moves no softmax, so neither b2 nor a linear compressor's pos
/// does).
double norm_of(const Tensors& tensors);

/// Error that a result may have against the truth: `factor` times that of a plain same-precision implementation, which
/// may be lucky where tensors are small: never less than a few roundings of the accumulating type and two of the
/// layer's. For what is stored in `stored`, half a unit in its last place more.
double derived_tolerance(double plain_error, double factor, DType dtype, DType stored);

inline constexpr double forward_factor = 2;
inline constexpr double backward_factor = 3;

/// What a layer that selected so must come to: computed once, compared with the results of many settings.
class Truth {
 public:
  /// `selected` is the selection of a layer run in `dtype`; the selected branch is judged by it.
  Truth(Problem problem, DType dtype, std::vector<std::int32_t> selected);

  /// Whether that selection is one: as many blocks as there may be, ascending, causal, the forced ones among them, and
  /// no block left out where scores are further apart than a plain implementation's errors in them.
  testing::AssertionResult selection_is_right() const;
  testing::AssertionResult out_agrees(const Values& out) const;
  /// Tensors of `found` that are empty are not compared. dq, dk, dv and dgate are stored in the type `of_rows`.
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
