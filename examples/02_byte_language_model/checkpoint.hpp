#pragma once

#include <span>
#include <string>
#include <vector>

#include "options.hpp"

namespace language_model {

inline constexpr const char* checkpoint_name = "model.bin";  ///< in the folder of a run's results

/// A trained model: the options that say its shape, and the values of its parameters.
struct Checkpoint {
  Options options;
  std::vector<double> values;
};

/// The bytes of a checkpoint's file: a line of text with the shape, then the values as little-endian float64.
std::string to_bytes(const Options& options, std::span<const double> values);

/// Errors: cpnsa::ArgumentError, which names the file.
Checkpoint read_checkpoint(const std::string& path);

}  // namespace language_model
