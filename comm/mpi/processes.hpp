#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

namespace cpnsa::mpi {

/// A process as another one of the same host sees it.
struct Process {
  std::uint64_t host = 0;  ///< of its host, or of its container where process numbers are the container's own
  std::int64_t id = 0;
  std::int64_t start_time = 0;  ///< of the process, in clock ticks since the host's start: ids are used again

  static Process self();
};

/// Watches the processes of the other ranks that run on this host. Ranks on other hosts are left to the launcher.
class Processes {
 public:
  /// The processes of all ranks, in rank order.
  void set(std::vector<Process> processes);

  /// True once in 100 ms: time to look again.
  bool looks_now();
  /// The first of the ranks whose process has ended, or -1.
  int ended(std::span<const int> ranks) const;
  std::int64_t id(int rank) const { return processes_[static_cast<std::size_t>(rank)].id; }

 private:
  std::vector<Process> processes_;
  std::vector<char> watched_;
  std::chrono::steady_clock::time_point next_look_{};
};

}  // namespace cpnsa::mpi
