#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace needle {

/// The number of right answers for each length and each band of depths: depth 0 is the start of the sequence, depth 1
/// the last position before the questions.
struct Grid {
  std::int64_t max_trained_length = 0;           ///< tokens of the longest sequence in the training
  std::vector<std::int64_t> lengths;             ///< tokens
  int bands = 0;                                 ///< number of equal parts of the depths
  std::vector<std::vector<std::int64_t>> right;  ///< [length][band]
  std::vector<std::int64_t> asked;               ///< [length], questions per band
  std::vector<double> seconds;                   ///< [length], time of the evaluation

  double accuracy(std::size_t length, int band) const;
  double min_accuracy() const;  ///< minimum over all cells
};

/// Text for a number of tokens: 1024 is "1K".
std::string name_of_length(std::int64_t tokens);

/// Text for an accuracy in per cent: 0.9996 is "99.9", and only 1 is "100".
std::string per_cent(double share);

/// A table for people: one line per band, one column per length, in per cent.
std::string to_table(const Grid& grid);

/// Columns tokens, depth_begin, depth_end, asked, right, accuracy; one line per cell.
std::string to_csv(const Grid& grid);

/// The grid as an SVG picture.
std::string to_heat_map(const Grid& grid);

}  // namespace needle
