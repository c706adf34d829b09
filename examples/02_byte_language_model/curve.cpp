#include "curve.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numbers>
#include <sstream>

#include "cpnsa/error.hpp"

namespace language_model {
namespace {

constexpr const char* header = "step,loss,bits_per_byte";

// The name of the run's folder: "full" for runs/full/loss.csv; of the file where it is in no folder.
std::string name_of(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.parent_path().filename();
  return folder.empty() || folder == "." || folder == ".." ? path.filename().string() : folder.string();
}

}  // namespace

std::string to_csv(const Curve& curve) {
  std::string csv = fmt::format("{}\n", header);
  for (std::size_t i = 0; i < curve.losses.size(); ++i)
    csv += fmt::format("{},{:.17g},{:.6f}\n", i + 1, curve.losses[i], curve.losses[i] / std::numbers::ln2);
  return csv;
}

Curve read_curve(const std::string& path) {
  errno = 0;
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line))
    throw cpnsa::ArgumentError(fmt::format("--compare: found {} ({}), expected a loss.csv that can be read", path,
                                           errno ? std::strerror(errno) : "empty"));
  if (line != header)
    throw cpnsa::ArgumentError(
        fmt::format("--compare: found \"{:.60}\" in line 1 of {}, expected \"{}\"", line, path, header));
  Curve curve{name_of(path), {}};
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::size_t step = 0;
    double loss = 0;
    char comma = 0;
    if (!(fields >> step >> comma >> loss) || comma != ',' || step != curve.losses.size() + 1 || !std::isfinite(loss))
      throw cpnsa::ArgumentError(fmt::format("--compare: found \"{:.60}\" in line {} of {}, expected \"{},<loss>,...\"",
                                             line, curve.losses.size() + 2, path, curve.losses.size() + 1));
    curve.losses.push_back(loss);
  }
  if (curve.losses.empty())
    throw cpnsa::ArgumentError(fmt::format("--compare: found no step in {}, expected at least one", path));
  return curve;
}

}  // namespace language_model
