#pragma once

#include <string>
#include <vector>

namespace language_model {

/// The loss of every step, in nats a byte.
struct Curve {
  std::string name;
  std::vector<double> losses;  ///< of steps 1, 2, ...
};

/// Columns step, loss (nats a byte, with all digits) and bits_per_byte.
std::string to_csv(const Curve& curve);

/// Reads what to_csv() wrote; the curve is named after the folder of the file. Throws cpnsa::ArgumentError.
Curve read_curve(const std::string& path);

/// Writes a file whole. Throws cpnsa::ArgumentError.
void write_file(const std::string& path, const std::string& content);

}  // namespace language_model
