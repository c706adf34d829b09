#include "comm/mpi/processes.hpp"

#include <unistd.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

namespace cpnsa::mpi {
namespace {

constexpr std::chrono::milliseconds pause{100};

std::string content_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// When a process started; none if it has ended, also while its parent has not fetched its exit status.
std::optional<std::int64_t> start_time_of(std::int64_t id) {
  const std::string stat = content_of("/proc/" + std::to_string(id) + "/stat");
  const std::size_t name_end = stat.rfind(')');  // the second field is a name in parentheses, maybe with blanks
  if (name_end == stat.npos) return std::nullopt;
  std::istringstream fields(stat.substr(name_end + 1));
  std::string state, skipped;
  fields >> state;
  if (state == "Z" || state == "X") return std::nullopt;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  std::int64_t start_time = 0;
  if (!(fields >> start_time)) return std::nullopt;
  return start_time;
}

// Process numbers are comparable within one boot of a host and one namespace of process numbers.
std::uint64_t number_space() {
  char link[64] = "";
  const ssize_t length = ::readlink("/proc/self/ns/pid", link, sizeof link - 1);
  const std::string space(link, length > 0 ? static_cast<std::size_t>(length) : 0);
  return std::hash<std::string>()(content_of("/proc/sys/kernel/random/boot_id") + space);
}

}  // namespace

Process Process::self() {
  const std::int64_t id = ::getpid();
  return {number_space(), id, start_time_of(id).value_or(-1)};
}

void Processes::set(std::vector<Process> processes) {
  processes_ = std::move(processes);
  const std::uint64_t host = number_space();
  watched_.clear();
  for (const Process& process : processes_)
    watched_.push_back(process.host == host && start_time_of(process.id) == process.start_time);
}

bool Processes::looks_now() {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_look_) return false;
  next_look_ = now + pause;
  return true;
}

int Processes::ended(std::span<const int> ranks) const {
  for (const int rank : ranks) {
    const auto index = static_cast<std::size_t>(rank);
    if (index < watched_.size() && watched_[index] &&
        start_time_of(processes_[index].id) != processes_[index].start_time)
      return rank;
  }
  return -1;
}

}  // namespace cpnsa::mpi
