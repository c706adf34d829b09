#pragma once

#include <filesystem>
#include <vector>

namespace cpnsa::test {

/// The losses of a loss.csv, by step. Throws unless its steps count from 1.
std::vector<double> read_losses(const std::filesystem::path& csv);

/// The largest |a - b| / |a| of two curves of one length; infinite where a loss is not finite.
double relative_deviation(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace cpnsa::test
