#pragma once

#include <filesystem>

#include "tests/support/problem.hpp"

namespace cpnsa::test {

/// A NumPy file of little-endian f4, f8, i4 or i8 in C order.
struct NpyArray {
  Shape shape;
  Values values;
};

/// Throws std::runtime_error that names the file if it is anything else.
NpyArray read_npy(const std::filesystem::path& path);

}  // namespace cpnsa::test
