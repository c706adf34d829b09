#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/problem.hpp"

namespace cpnsa::test {

/// A worked case of tests/golden/cases: inputs, and what a float64 implementation written elsewhere made of them, both
/// stored as float32.
struct GoldenCase {
  std::string name;
  Problem problem;
  Values out;
  std::vector<std::int32_t> selected;
  Values margin;  ///< [T, G]: last score taken minus first one left, infinity where there was no choice
  Tensors gradients;
};

/// Names of the cases' folders.
std::vector<std::string> golden_case_names();
GoldenCase read_golden_case(const std::string& name);

}  // namespace cpnsa::test
