#include "tools/bench_samples.hpp"

#include <algorithm>
#include <utility>

namespace cpnsa::tool {

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

std::vector<double> Samples::slowest_medians(Communicator& control) const {
  const auto ranks = static_cast<std::size_t>(control.size());
  std::vector<double> all(ranks * seconds.size());
  control.all_gather_host(seconds.data(), all.data(), seconds.size() * sizeof(double));
  std::vector<double> medians;
  for (std::size_t column = 0; column < width; ++column) {
    std::vector<double> slowest;
    for (std::size_t i = column; i < seconds.size(); i += width) {
      slowest.push_back(0);
      for (std::size_t rank = 0; rank < ranks; ++rank)
        slowest.back() = std::max(slowest.back(), all[rank * seconds.size() + i]);
    }
    medians.push_back(median(std::move(slowest)));
  }
  return medians;
}

}  // namespace cpnsa::tool
