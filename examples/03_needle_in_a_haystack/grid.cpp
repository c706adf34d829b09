#include "grid.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace needle {
namespace {

double depth(int band, int bands) {
  return static_cast<double>(band) / bands;
}

}  // namespace

double Grid::accuracy(std::size_t length, int band) const {
  return static_cast<double>(right[length][static_cast<std::size_t>(band)]) / static_cast<double>(asked[length]);
}

double Grid::min_accuracy() const {
  double least = 1.0;
  for (std::size_t length = 0; length < lengths.size(); ++length)
    for (int band = 0; band < bands; ++band) least = std::min(least, accuracy(length, band));
  return least;
}

std::string name_of_length(std::int64_t tokens) {
  return tokens % 1024 == 0 ? fmt::format("{}K", tokens / 1024) : fmt::format("{}", tokens);
}

std::string per_cent(double share) {
  constexpr double rounding = 1e-9;
  return share >= 1.0 ? "100" : fmt::format("{:.1f}", std::floor(share * 1000 + rounding) / 10);
}

std::string to_table(const Grid& grid) {
  std::string table = fmt::format("{:<16}", "depth");
  for (const std::int64_t length : grid.lengths) table += fmt::format("{:>9}", name_of_length(length));
  for (int band = 0; band < grid.bands; ++band) {
    const std::string depths =
        fmt::format("{:.0f} - {:.0f} %", 100 * depth(band, grid.bands), 100 * depth(band + 1, grid.bands));
    table += fmt::format("\n{:<16}", depths);
    for (std::size_t length = 0; length < grid.lengths.size(); ++length)
      table += fmt::format("{:>7} %", per_cent(grid.accuracy(length, band)));
  }
  table += fmt::format("\n{:<16}", "asked in a cell");
  for (const std::int64_t asked : grid.asked) table += fmt::format("{:>9}", asked);
  table += fmt::format("\n{:<16}", "seconds");
  for (const double seconds : grid.seconds) table += fmt::format("{:>9.1f}", seconds);
  return table + "\n";
}

std::string to_csv(const Grid& grid) {
  std::string csv = "tokens,depth_begin,depth_end,asked,right,accuracy\n";
  for (std::size_t length = 0; length < grid.lengths.size(); ++length)
    for (int band = 0; band < grid.bands; ++band)
      csv += fmt::format("{},{:.4f},{:.4f},{},{},{:.6f}\n", grid.lengths[length], depth(band, grid.bands),
                         depth(band + 1, grid.bands), grid.asked[length],
                         grid.right[length][static_cast<std::size_t>(band)], grid.accuracy(length, band));
  return csv;
}

}  // namespace needle
