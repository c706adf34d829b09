#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace needle {

/// How many questions were answered right, for each length and each part of the depths: depth 0 is the sequence's
/// start, depth 1 the last place before the questions.
struct Grid {
  std::int64_t longest_learnt = 0;               ///< tokens of the longest sequence that was learnt from
  std::vector<std::int64_t> lengths;             ///< tokens
  int bands = 0;                                 ///< equal parts of the depths
  std::vector<std::vector<std::int64_t>> right;  ///< [length][band]
  std::vector<std::int64_t> asked;               ///< [length], questions to each band
  std::vector<double> seconds;                   ///< [length], that the evaluation took

  double accuracy(std::size_t length, int band) const;
  double min_accuracy() const;  ///< of all cells
};

/// 1024 is "1K".
std::string name_of_length(std::int64_t tokens);

/// 0.9996 is "99.9", and only 1 is "100".
std::string per_cent(double share);

/// For people: a line a band, a column a length, per cent.
std::string to_table(const Grid& grid);

/// Columns tokens, depth_begin, depth_end, asked, right, accuracy; a line a cell.
std::string to_csv(const Grid& grid);

/// An SVG picture.
std::string to_heat_map(const Grid& grid);

}  // namespace needle
