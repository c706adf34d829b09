#pragma once

#include <string>
#include <vector>

namespace language_model {

/// The loss of every step, in nats per byte.
struct Curve {
  std::string name;
  std::vector<double> losses;  ///< losses of steps 1, 2, ...
};

/// Columns step, loss (nats per byte, with all digits) and bits_per_byte.
std::string to_csv(const Curve& curve);

/// Reads a file written by to_csv(); the curve gets the name of the file's folder. Throws cpnsa::ArgumentError.
Curve read_curve(const std::string& path);

}  // namespace language_model
