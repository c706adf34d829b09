#include "tools/host_memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "cpnsa/error.hpp"

namespace cpnsa::tool {
namespace {

// The first number of a file that holds nothing else; -1 if there is none, as of a limit that is "max".
std::int64_t number_in(const char* path) {
  std::ifstream file(path);
  std::int64_t number = -1;
  return file >> number ? number : -1;
}

}  // namespace

std::int64_t available_host_memory() {
  std::int64_t available = -1;
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("MemAvailable:")) available = std::stoll(line.substr(line.find(':') + 1)) * 1024;
  const std::int64_t limit = number_in("/sys/fs/cgroup/memory.max"), used = number_in("/sys/fs/cgroup/memory.current");
  if (limit < 0 || used < 0) return available;
  return available < 0 ? limit - used : std::min(available, limit - used);
}

void check_host_memory(std::int64_t ranks, double bytes_per_rank) {
  const std::int64_t available = available_host_memory();
  if (available < 0 || static_cast<double>(ranks) * bytes_per_rank <= static_cast<double>(available)) return;
  constexpr double mebibyte = 1 << 20;
  throw ArgumentError(fmt::format(
      "--ranks: found {} on this host, which want {:.0f} MiB each, expected {:.0f} at most: {:.0f} MiB are available",
      ranks, bytes_per_rank / mebibyte, static_cast<double>(available) / bytes_per_rank,
      static_cast<double>(available) / mebibyte));
}

}  // namespace cpnsa::tool
