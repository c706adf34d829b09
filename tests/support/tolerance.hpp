#pragma once

#include <gtest/gtest.h>

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
/// may be lucky: never less than a few roundings of the accumulating type and, for what is stored in `stored`, half a
/// unit in its last place.
double derived_tolerance(double plain_error, double factor, DType dtype, DType stored);

inline constexpr double forward_factor = 2;
inline constexpr double backward_factor = 3;

/// Whether out, indices and gradients of a layer run in `dtype` agree with the truth within derived tolerances. The
/// indices must be the truth's wherever the scores are further apart than a plain implementation's errors in them.
testing::AssertionResult agrees_with_oracle(const Problem& problem, DType dtype, const Values& out,
                                            const std::vector<std::int32_t>& selected);
testing::AssertionResult gradients_agree_with_oracle(const Problem& problem, DType dtype, DType gradient_dtype,
                                                     const std::vector<std::int32_t>& selected,
                                                     const Tensors& gradients);

}  // namespace cpnsa::test
