#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/problem.hpp"

namespace cpnsa::test {

/// A case of tests/golden/cases: inputs, and the results of an independent float64 implementation, both stored as
/// float32.
struct GoldenCase {
  std::string name;
  Problem problem;
  Values out;
  std::vector<std::int32_t> selected;
  Values margin;  ///< [T, G]: lowest selected score minus highest score left out; infinity if all are selected
  Tensors gradients;
};

/// The names of the folders in tests/golden/cases.
std::vector<std::string> golden_case_names();
GoldenCase read_golden_case(const std::string& name);

}  // namespace cpnsa::test
