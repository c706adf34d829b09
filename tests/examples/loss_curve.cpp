#include "tests/examples/loss_curve.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

#include "tests/tools/test_files.hpp"

namespace cpnsa::test {

std::vector<double> read_losses(const std::filesystem::path& csv) {
  std::istringstream lines(read_file(csv));
  std::string line;
  std::getline(lines, line);
  if (line != "step,loss,bits_per_byte") throw std::runtime_error("header: " + line);
  std::vector<double> losses;
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    std::size_t step = 0;
    char comma = 0;
    double loss = 0;
    if (!(fields >> step >> comma >> loss) || step != losses.size() + 1) throw std::runtime_error("line: " + line);
    losses.push_back(loss);
  }
  return losses;
}

double relative_deviation(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) throw std::runtime_error("curves of different lengths");
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double deviation = std::abs(a[i] - b[i]) / std::abs(a[i]);
    largest = std::isfinite(deviation) ? std::max(largest, deviation) : std::numeric_limits<double>::infinity();
  }
  return largest;
}

}  // namespace cpnsa::test
